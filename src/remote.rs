//! Where the controller is: on this host, by its socket, or anywhere, by HTTPS.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hyper::{Method, Uri};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde_json::Value;

use crate::client::{self, Endpoint, RunDir};
use crate::output::BadInput;

/// Where distributions keep the authorities that they trust.
const SYSTEM_AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Where the controller is, and who asks it.
#[derive(clap::Args)]
pub struct ControllerAt {
    /// URL of the controller, such as `https://net.example:8443` [default: its socket in --run-dir]
    #[arg(long, env = "SLUICE_URL", value_name = "URL")]
    url: Option<String>,
    /// The same for a controller on this host without TLS, such as 127.0.0.1:8080
    #[arg(
        long = "controller",
        env = "SLUICE_CONTROLLER",
        value_name = "ADDRESS:PORT",
        conflicts_with = "url"
    )]
    address: Option<String>,
    /// Token that says who asks; others may see it among the processes, so rather give --token-file
    #[arg(long, env = "SLUICE_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// File with the token
    #[arg(long, env = "SLUICE_TOKEN_FILE", value_name = "FILE", conflicts_with = "token")]
    token_file: Option<PathBuf>,
    /// PEM file with the authorities that sign controllers [default: those of the system]
    #[arg(long, env = "SLUICE_CACERT", value_name = "FILE")]
    cacert: Option<PathBuf>,
    /// PEM file with a certificate that says who asks
    #[arg(long, env = "SLUICE_CERT", value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,
    /// PEM file with the certificate's private key
    #[arg(long, env = "SLUICE_KEY", value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    #[command(flatten)]
    run_dir: RunDir,
}

/// A controller that is reached by HTTP.
pub struct Remote {
    /// Host and port, with brackets where the host is an IPv6 address.
    pub authority: String,
    /// With TLS: the name that the certificate has to have.
    pub tls: Option<(ServerName<'static>, Arc<ClientConfig>)>,
    /// What every path begins with; empty for nothing.
    pub base: String,
    /// Who asks.
    pub token: Option<String>,
}

fn bad(flag: &str, value: &str, detail: impl std::fmt::Display) -> anyhow::Error {
    BadInput(format!("{flag} `{value}`: {detail}")).into()
}

impl ControllerAt {
    /// Asks or tells the controller.
    pub fn request(&self, method: Method, path: &str, body: Option<&Value>) -> anyhow::Result<Value> {
        client::request_at(&self.endpoint()?, method, path, body)
    }

    fn endpoint(&self) -> anyhow::Result<Endpoint> {
        let url = match (&self.url, &self.address) {
            (Some(url), _) => url.clone(),
            (None, Some(address)) => format!("http://{address}"),
            (None, None) => return Ok(Endpoint::Unix(self.run_dir.admin_socket("controller"))),
        };
        let wrong = |detail: &str| bad("--url", &url, format!("{detail}; give https://HOST[:PORT][/PATH]"));
        let parsed: Uri = url.parse().map_err(|_| wrong("is no URL"))?;
        let (Some(scheme), Some(host)) = (parsed.scheme_str(), parsed.host()) else {
            return Err(wrong("names no protocol and host"));
        };
        let https = match scheme {
            "https" => true,
            "http" => false,
            _ => return Err(wrong("is neither https nor http")),
        };
        let token = self.token()?;
        let plain = host.trim_matches(['[', ']']);
        let here = plain == "localhost" || plain.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
        if !https && !here && token.is_some() {
            return Err(wrong("would show the token to everybody on the way"));
        }
        let port = parsed.port_u16().unwrap_or(if https { 443 } else { 80 });
        let tls = if https {
            let name = ServerName::try_from(plain.to_owned()).map_err(|_| wrong("names no host"))?;
            Some((name, self.tls()?))
        } else {
            None
        };
        let base = parsed.path().trim_end_matches('/').to_owned();
        Ok(Endpoint::Remote(Remote { authority: format!("{host}:{port}"), tls, base, token }))
    }

    fn token(&self) -> anyhow::Result<Option<String>> {
        let Some(file) = &self.token_file else { return Ok(self.token.clone()) };
        let text = std::fs::read_to_string(file);
        let text = text.map_err(|error| bad("--token-file", &file.display().to_string(), error))?;
        Ok(Some(text.trim().to_owned()))
    }

    fn tls(&self) -> anyhow::Result<Arc<ClientConfig>> {
        let authorities = self.cacert.as_deref().unwrap_or(Path::new(SYSTEM_AUTHORITIES));
        let identity = self.key.as_deref().zip(self.cert.as_deref());
        telemetry::tls::https_client(authorities, identity)
            .map_err(|error| BadInput(error.to_string()).into())
    }
}
