//! Who asks: by token, by certificate, or by being on this host; and whether a browser asks for somebody else's page.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, HeaderName, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use rustls::ServerConfig;
use telemetry::Problem;

use super::listen::Caller;
use crate::auth::{Grant, Identity, Role};
use crate::controller::Controller;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Where REST is served, and to whom.
#[derive(Clone, Debug)]
pub struct RestConfig {
    /// The address.
    pub address: SocketAddr,
    /// TLS, unless everybody who can connect is on this host.
    pub tls: Option<Arc<ServerConfig>>,
    /// What those may who show a certificate, by its common name.
    pub clients: BTreeMap<String, Grant>,
    /// What those on this host may who say nothing about themselves; `None`: nothing. Without TLS only.
    pub loopback: Option<Role>,
    /// Names under which browsers know a listener without TLS, beside those of this host.
    pub hosts: Vec<String>,
    /// Proxies that are believed when they say for whom they ask.
    pub proxies: Vec<IpAddr>,
    /// What paths may begin with, such as `/sluice`; empty for nothing.
    pub base: String,
}

impl RestConfig {
    /// For whoever is on this host.
    pub fn local(address: SocketAddr) -> RestConfig {
        RestConfig {
            address,
            tls: None,
            clients: BTreeMap::new(),
            loopback: Some(Role::Admin),
            hosts: vec![],
            proxies: vec![],
            base: String::new(),
        }
    }
}

/// Why a request is refused before it is looked at.
#[derive(Clone, Debug)]
pub struct Refused(pub Problem);

/// The door of a listener.
pub struct Door {
    /// Where it is, and who may come in.
    pub config: RestConfig,
    /// The controller behind it.
    pub controller: Arc<Controller>,
}

/// Notes who asks, or why they are refused.
pub async fn identify(
    State(door): State<Arc<Door>>,
    ConnectInfo(caller): ConnectInfo<Caller>,
    mut request: Request,
    next: Next,
) -> Response {
    match door.find(&caller, request.method(), request.headers()) {
        Ok(Some(who)) => drop(request.extensions_mut().insert(who)),
        Ok(None) => {}
        Err(problem) => drop(request.extensions_mut().insert(Refused(problem))),
    }
    next.run(request).await
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// The last of a list: what the nearest proxy added.
fn last(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get_all(name).iter().next_back()?.to_str().ok()?.rsplit(',').next().map(str::trim)
}

/// A host without its port.
fn name_of(authority: &str) -> &str {
    match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => authority.rsplit_once(':').map_or(authority, |(name, _)| name),
    }
}

impl Door {
    /// Who asks; `None`: nobody knows.
    fn find(
        &self,
        caller: &Caller,
        method: &Method,
        headers: &HeaderMap,
    ) -> Result<Option<Identity>, Problem> {
        let proxied = self.config.proxies.contains(&caller.address.ip().to_canonical());
        let host = match last(headers, FORWARDED_HOST).filter(|_| proxied) {
            Some(host) => Some(host),
            None => text(headers, header::HOST),
        };
        self.check_page(host.filter(|_| !proxied || headers.contains_key(FORWARDED_HOST)), method, headers)?;
        if self.config.tls.is_none() && !proxied {
            self.check_host(host)?;
        }
        let forwarded = last(headers, FORWARDED_FOR).filter(|_| proxied);
        let forwarded = forwarded.and_then(|client| client.parse::<IpAddr>().ok());
        let from = forwarded.map_or_else(|| caller.address.to_string(), |client| client.to_string());
        if let Some(value) = headers.get(header::AUTHORIZATION) {
            return self.bearer(value.to_str().unwrap_or_default(), &from).map(Some);
        }
        if let Some(subject) = &caller.subject {
            return self.certified(subject, from).map(Some);
        }
        let here = self.config.tls.is_none() && caller.address.ip().to_canonical().is_loopback() && !proxied;
        let grant = self.config.loopback.filter(|_| here).map(|role| Grant { role, tenant: None });
        Ok(grant.map(|grant| Identity::granted("local", from, grant)))
    }

    fn bearer(&self, value: &str, from: &str) -> Result<Identity, Problem> {
        let token =
            value.split_once(' ').filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")).map(|(_, t)| t);
        let who = token.and_then(|token| self.controller.tokens().find(token.trim(), from));
        who.ok_or_else(|| {
            if let Some(suppressed) = self.controller.limited().pass("token") {
                tracing::warn!(from, suppressed, "a request with a token that is not known");
            }
            let detail = "give `Authorization: Bearer` and a token that `sluice controller token list` names";
            Problem::new(StatusCode::UNAUTHORIZED, "the token is not known").detail(detail)
        })
    }

    fn certified(&self, subject: &str, from: String) -> Result<Identity, Problem> {
        let grant = self.config.clients.get(subject).cloned();
        grant.map(|grant| Identity::granted(subject, from, grant)).ok_or_else(|| {
            let title = format!("the certificate of {subject} has no role here");
            Problem::new(StatusCode::FORBIDDEN, title).detail("the setting rest_clients gives roles")
        })
    }

    /// Without TLS a page of anybody's can make its own name mean this host (DNS rebinding): only names that are ours
    /// are answered to. Who names no host is no browser.
    fn check_host(&self, host: Option<&str>) -> Result<(), Problem> {
        let Some(host) = host else { return Ok(()) };
        let name = name_of(host);
        let ours = name.eq_ignore_ascii_case("localhost")
            || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback() || ip == self.config.address.ip())
            || self.config.hosts.iter().any(|known| known.eq_ignore_ascii_case(name));
        if ours {
            return Ok(());
        }
        let problem =
            Problem::new(StatusCode::MISDIRECTED_REQUEST, format!("`{host}` is not this controller"));
        Err(problem.detail("use the name of this host, or add the name to the setting rest_hosts"))
    }

    /// A page of somebody else's must not ask with what the browser has of the operator: its certificate, or that it
    /// is on this host.
    fn check_page(&self, host: Option<&str>, method: &Method, headers: &HeaderMap) -> Result<(), Problem> {
        let foreign = match text(headers, header::ORIGIN) {
            Some(origin) => host.is_some_and(|host| {
                let authority = origin.split_once("://").map_or("", |(_, authority)| authority);
                !authority.eq_ignore_ascii_case(host)
            }),
            None => text(headers, FETCH_SITE) == Some("cross-site") && !method.is_safe(),
        };
        if !foreign {
            return Ok(());
        }
        let origin = text(headers, header::ORIGIN).unwrap_or("another site");
        let title = format!("a page of {origin} may not ask this controller");
        Err(Problem::new(StatusCode::FORBIDDEN, title))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_without_their_ports() {
        for (authority, name) in [
            ("a", "a"),
            ("a:1", "a"),
            ("127.0.0.1:8080", "127.0.0.1"),
            ("[::1]:8080", "::1"),
            ("[::1]", "::1"),
        ] {
            assert_eq!(name_of(authority), name);
        }
    }
}
