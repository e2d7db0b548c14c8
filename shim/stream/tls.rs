//! TLS for the sessions' connections, where the configuration has a certificate.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

use crate::config::Config;

/// What is wrong with the files.
#[derive(Debug, thiserror::Error)]
#[error("{key} {}: {why}", file.display())]
pub struct TlsError {
    /// The key of the configuration.
    pub key: &'static str,
    /// The file.
    pub file: PathBuf,
    /// What is wrong.
    pub why: String,
}

/// What the configuration says of TLS.
///
/// # Errors
/// As [`acceptor`].
pub fn configured(config: &Config) -> Result<Option<TlsAcceptor>, TlsError> {
    match (&config.stream_certificate, &config.stream_key) {
        (Some(certificate), Some(key)) => acceptor(certificate, key).map(Some),
        _ => Ok(None),
    }
}

/// Reads a certificate, with those between it and its authority, and its key.
///
/// # Errors
/// A file cannot be read, is not what it should be, or the two do not belong together.
pub fn acceptor(certificate: &Path, key: &Path) -> Result<TlsAcceptor, TlsError> {
    fn wrong(key: &'static str, file: &Path) -> impl Fn(&dyn Display) -> TlsError {
        move |why| TlsError { key, file: file.to_owned(), why: why.to_string() }
    }
    let wrong_certificate = wrong("stream_certificate", certificate);
    let wrong_key = wrong("stream_key", key);
    let chain = CertificateDer::pem_file_iter(certificate).map_err(|error| wrong_certificate(&error))?;
    let chain: Vec<_> = chain.collect::<Result<_, _>>().map_err(|error| wrong_certificate(&error))?;
    if chain.is_empty() {
        return Err(wrong_certificate(&"has no certificate in PEM"));
    }
    let key = PrivateKeyDer::from_pem_file(key).map_err(|error| wrong_key(&error))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong_key(&error))?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|error| wrong_key(&format!("does not belong to the certificate: {error}")))?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}
