//! The TLS settings for a server: its trusted authorities, and the client's certificates.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

use super::p521::provider;
use super::server_identity::ServerIdentity;
use crate::error::Error;

/// The TLS settings for a server: how it is verified, and the client certificates.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Tls {
    /// Authorities (PEM) in addition to those of the system.
    pub(crate) ca: Vec<Vec<u8>>,
    /// Client certificates, each with its key (PEM).
    pub(crate) client: Vec<(Vec<u8>, Vec<u8>)>,
    pub(crate) skip_verify: bool,
    /// The timeout for connecting, if it is configured.
    pub(crate) dial_timeout: Option<Duration>,
}

impl Tls {
    /// Checks that the certificates and keys can be used.
    pub(super) fn check(&self, folder: &Path) -> Result<(), Error> {
        let config = tls_config(self);
        config.map(drop).map_err(|error| Error::invalid(folder.display().to_string(), error))
    }
}

/// Creates the TLS configuration.
///
/// # Errors
/// A certificate or a key is invalid.
pub(super) fn tls_config(tls: &Tls) -> Result<ClientConfig, Error> {
    let invalid = |why: String| Error::invalid("TLS configuration", why);
    let provider = provider();
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| invalid(error.to_string()))?;
    let builder = if tls.skip_verify {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyServer(provider)))
    } else {
        let mut roots = rustls::RootCertStore::empty();
        let native = rustls_native_certs::load_native_certs();
        for error in &native.errors {
            tracing::warn!(%error, "failed to load a root certificate of the system");
        }
        let (_, ignored) = roots.add_parsable_certificates(native.certs);
        tracing::debug!(roots = roots.len(), ignored, "loaded the root certificates of the system");
        let mut configured = Vec::new();
        for pem in &tls.ca {
            let authorities = certificates(pem)?;
            // As in Go, certificates that cannot be parsed are skipped.
            let (added, _) = roots.add_parsable_certificates(authorities.iter().cloned());
            if added == 0 {
                return Err(invalid("ca: a file has no certificate that can be parsed".to_owned()));
            }
            configured.extend(authorities);
        }
        let identity = ServerIdentity::new(provider, roots, configured);
        builder.dangerous().with_custom_certificate_verifier(Arc::new(identity))
    };
    let Some((certificate, key)) = tls.client.first() else {
        return Ok(builder.with_no_client_auth());
    };
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| invalid(format!("client key: {error}")))?;
    builder
        .with_client_auth_cert(certificates(certificate)?, key)
        .map_err(|error| invalid(format!("client certificate: {error}")))
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Error> {
    let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match parsed {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err(Error::invalid("TLS configuration", "a file contains no certificate")),
        Err(error) => Err(Error::invalid("TLS configuration", error)),
    }
}

/// Accepts any certificate, as `skip_verify` requires. The signatures of the handshake are verified.
#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
