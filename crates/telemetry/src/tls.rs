//! TLS 1.2 and 1.3: the files, checked, and the settings of both ends.
//!
//! [`Tls`] is for ends that know each other (OpenFlow). Only the chain counts there: the peer's certificate has to be
//! signed by the given authority and be valid now. Its name is not compared with anything, because the tools that make
//! such certificates (`ovs-pki`) put no host name into them: the authority signs nobody else.
//!
//! [`https_server`] and [`https_client`] are for HTTP: the client checks the server's name too, and may show a
//! certificate or be known in another way.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};

/// Where the three PEM files are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// Our private key.
    pub key: PathBuf,
    /// Our certificate; those of authorities between it and the other end's may follow.
    pub cert: PathBuf,
    /// Certificates of the authorities that sign the other ends.
    pub ca: PathBuf,
}

/// Why the files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read, or holds nothing of its kind.
    #[error("cannot read {what} from {path}: {source}")]
    Unreadable {
        /// What it should hold.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: pem::Error,
    },
    /// The file holds no certificate.
    #[error("{path} holds no certificate; give a PEM file with at least one")]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// What the files hold cannot be used together, or at all.
    #[error("cannot use {path} for TLS: {source}")]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: rustls::Error,
    },
    /// The authorities' certificates cannot be used to check others.
    #[error("cannot check certificates by {path}: {source}")]
    Authority {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: rustls::server::VerifierBuilderError,
    },
}

/// Settings of both ends of connections between us and those that our authorities signed.
#[derive(Clone)]
pub struct Tls {
    /// For connections that we make.
    pub client: Arc<ClientConfig>,
    /// For connections that we accept; a peer without a certificate is refused.
    pub server: Arc<ServerConfig>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").finish_non_exhaustive()
    }
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// The first file that cannot be read or used.
    pub fn load(files: &TlsFiles) -> Result<Tls, TlsError> {
        let certs = certificates("certificates", &files.cert)?;
        let key = private_key(&files.key)?;
        let (roots, provider) = (Arc::new(authorities(&files.ca)?), Arc::new(ring::default_provider()));
        Ok(Tls {
            client: client(&provider, &roots, certs.clone(), key.clone_key())
                .map_err(|source| TlsError::Unusable { path: files.cert.clone(), source })?,
            server: server(&provider, &roots, certs, key, files)?,
        })
    }
}

/// Settings of an HTTP server with the certificate in `cert` and the private key in `key`. With `ca`, clients may show a
/// certificate, and one that these authorities did not sign ends the connection; a client without one is let in, to be
/// known by what it says.
///
/// # Errors
/// The first file that cannot be read or used.
pub fn https_server(key: &Path, cert: &Path, ca: Option<&Path>) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = Arc::new(ring::default_provider());
    let unusable = |source| TlsError::Unusable { path: cert.to_path_buf(), source };
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(unusable)?;
    let builder = match ca {
        None => builder.with_no_client_auth(),
        Some(ca) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(authorities(ca)?), provider)
                .allow_unauthenticated()
                .build()
                .map_err(|source| TlsError::Authority { path: ca.to_path_buf(), source })?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let certs = certificates("certificates", cert)?;
    let mut config = builder.with_single_cert(certs, private_key(key)?).map_err(unusable)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Settings of an HTTP client that trusts the authorities in `ca` and, where it is asked for one, shows the certificate
/// in the second file of `identity`, whose private key is in the first.
///
/// # Errors
/// The first file that cannot be read or used.
pub fn https_client(ca: &Path, identity: Option<(&Path, &Path)>) -> Result<Arc<ClientConfig>, TlsError> {
    let provider = Arc::new(ring::default_provider());
    let unusable = |path: &Path, source| TlsError::Unusable { path: path.to_path_buf(), source };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|source| unusable(ca, source))?
        .with_root_certificates(authorities(ca)?);
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some((key, cert)) => builder
            .with_client_auth_cert(certificates("certificates", cert)?, private_key(key)?)
            .map_err(|source| unusable(cert, source))?,
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn authorities(ca: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates("certificates of authorities", ca)? {
        let unusable = |source| TlsError::Unusable { path: ca.to_path_buf(), source };
        roots.add(certificate).map_err(unusable)?;
    }
    Ok(roots)
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let unreadable =
        |source| TlsError::Unreadable { what: "a private key", path: path.to_path_buf(), source };
    PrivateKeyDer::from_pem_file(path).map_err(unreadable)
}

fn certificates(what: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let unreadable = |source| TlsError::Unreadable { what, path: path.to_path_buf(), source };
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).map_err(unreadable)?.collect();
    let certificates = certificates.map_err(unreadable)?;
    if certificates.is_empty() {
        return Err(TlsError::Empty { path: path.to_path_buf() });
    }
    Ok(certificates)
}

fn client(
    provider: &Arc<CryptoProvider>,
    roots: &Arc<RootCertStore>,
    certs: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<Arc<ClientConfig>, rustls::Error> {
    let algorithms = provider.signature_verification_algorithms;
    let verifier = Arc::new(ChainOnly { roots: roots.clone(), algorithms });
    let config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_auth_cert(certs, key)?;
    Ok(Arc::new(config))
}

fn server(
    provider: &Arc<CryptoProvider>,
    roots: &Arc<RootCertStore>,
    certs: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    files: &TlsFiles,
) -> Result<Arc<ServerConfig>, TlsError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
        .build()
        .map_err(|source| TlsError::Authority { path: files.ca.clone(), source })?;
    let unusable = |source| TlsError::Unusable { path: files.cert.clone(), source };
    let config = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(unusable)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certs, key)
        .map_err(unusable)?;
    Ok(Arc::new(config))
}

/// Checks who signed a server's certificate and when it is valid, and leaves the name alone. (The check of clients
/// never looks at names.)
#[derive(Debug)]
struct ChainOnly {
    roots: Arc<RootCertStore>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for ChainOnly {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let cert = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(
            &cert,
            &self.roots,
            intermediates,
            now,
            self.algorithms.all,
        )?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_are_no_certificates_are_named() {
        let directory = tempfile::tempdir().expect("a directory");
        let (good, missing) = (directory.path().join("empty.pem"), directory.path().join("missing.pem"));
        std::fs::write(&good, "no PEM in here\n").expect("written");
        let files = |cert: &PathBuf| TlsFiles { key: good.clone(), cert: cert.clone(), ca: good.clone() };
        let error = Tls::load(&files(&missing)).expect_err("a file is missing").to_string();
        assert!(error.contains("missing.pem"), "{error}");
        let error = Tls::load(&files(&good)).expect_err("there is no certificate").to_string();
        assert!(error.contains("holds no certificate") && error.contains("empty.pem"), "{error}");
    }
}
