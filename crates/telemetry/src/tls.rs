//! TLS 1.2 and 1.3 with certificates of one's own authority, both ends known to each other: the files, checked, and the
//! settings of both ends.
//!
//! Only the chain counts: the peer's certificate has to be signed by the given authority and be valid now. Its name
//! is not compared with anything, because the tools that make such certificates (`ovs-pki`) put no host name into them:
//! the authority signs nobody else.

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
        let unreadable =
            |source| TlsError::Unreadable { what: "a private key", path: files.key.clone(), source };
        let key = PrivateKeyDer::from_pem_file(&files.key).map_err(unreadable)?;
        let mut roots = RootCertStore::empty();
        for certificate in certificates("certificates of authorities", &files.ca)? {
            let unusable = |source| TlsError::Unusable { path: files.ca.clone(), source };
            roots.add(certificate).map_err(unusable)?;
        }
        let (roots, provider) = (Arc::new(roots), Arc::new(ring::default_provider()));
        Ok(Tls {
            client: client(&provider, &roots, certs.clone(), key.clone_key())
                .map_err(|source| TlsError::Unusable { path: files.cert.clone(), source })?,
            server: server(&provider, &roots, certs, key, files)?,
        })
    }
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
