//! TLS for session connections, if a certificate is configured.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

use crate::config::Config;

/// A TLS file is invalid.
#[derive(Debug, thiserror::Error)]
#[error("invalid {key} {}: {reason}", file.display())]
pub struct TlsError {
    /// The configuration key that names the file.
    pub key: &'static str,
    /// The file that was read.
    pub file: PathBuf,
    /// The mistake in the field or file. content.
    pub reason: String,
}

/// Returns the TLS acceptor, if the configuration has a certificate.
///
/// # Errors
/// As [`acceptor`].
pub fn configured(config: &Config) -> Result<Option<TlsAcceptor>, TlsError> {
    match (&config.stream_certificate, &config.stream_key) {
        (Some(certificate), Some(key)) => acceptor(certificate, key).map(Some),
        _ => Ok(None),
    }
}

/// Reads a certificate chain and its key.
///
/// # Errors
/// A file cannot be read or is invalid, or the key does not belong to the certificate.
pub fn acceptor(certificate: &Path, key: &Path) -> Result<TlsAcceptor, TlsError> {
    fn invalid(key: &'static str, file: &Path) -> impl Fn(&dyn Display) -> TlsError {
        move |reason| TlsError { key, file: file.to_owned(), reason: reason.to_string() }
    }
    let invalid_certificate = invalid("stream_certificate", certificate);
    let invalid_key = invalid("stream_key", key);
    let chain = CertificateDer::pem_file_iter(certificate).map_err(|error| invalid_certificate(&error))?;
    let chain: Vec<_> = chain.collect::<Result<_, _>>().map_err(|error| invalid_certificate(&error))?;
    if chain.is_empty() {
        return Err(invalid_certificate(&"it contains no certificate in PEM"));
    }
    let key = PrivateKeyDer::from_pem_file(key).map_err(|error| invalid_key(&error))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| invalid_key(&error))?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|error| invalid_key(&format!("it does not belong to the certificate: {error}")))?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}
