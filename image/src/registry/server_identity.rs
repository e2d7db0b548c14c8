//! Verification of server certificates by the rules of Go (crypto/x509, `Certificate.Verify`): registries'
//! certificates are made to work with containerd, CRI-O and docker. The rules differ from those of webpki in
//! three points. A certificate that is itself one of the authorities is trusted, for any purpose. A
//! certificate that may sign others may also be a server's, as `openssl req -x509` creates them. And `*.lan`
//! is a wildcard like any other.
//!
//! All other cases are decided by webpki.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use spki::ObjectIdentifier;
use x509_cert::Certificate;
use x509_cert::der::asn1::AnyRef;
use x509_cert::der::{Decode as _, Encode as _, Reader as _, SliceReader};
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{BasicConstraints, ExtendedKeyUsage, KeyUsage, SubjectAltName};

/// The most certificates between that of the server and that of the authority.
const MAX_PATH: usize = 6;
/// RFC 5280, 4.2.1.12: serverAuth, anyExtendedKeyUsage.
const SERVER: [ObjectIdentifier; 2] =
    [ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.1"), ObjectIdentifier::new_unwrap("2.5.29.37.0")];
/// Extensions that may be critical in a path that is built here: key usage, alternative names, basic
/// constraints, extended key usage, policies. Another one, such as name constraints, makes the path invalid.
const SUPPORTED_EXTENSIONS: [ObjectIdentifier; 5] = [
    ObjectIdentifier::new_unwrap("2.5.29.15"),
    ObjectIdentifier::new_unwrap("2.5.29.17"),
    ObjectIdentifier::new_unwrap("2.5.29.19"),
    ObjectIdentifier::new_unwrap("2.5.29.37"),
    ObjectIdentifier::new_unwrap("2.5.29.32"),
];

/// Verifies servers by the rules of Go.
#[derive(Debug)]
pub(super) struct ServerIdentity {
    provider: Arc<CryptoProvider>,
    roots: RootCertStore,
    /// The configured authorities, as complete certificates. Those of the system are loaded when they are
    /// needed.
    configured: Vec<CertificateDer<'static>>,
}

impl ServerIdentity {
    pub(super) fn new(
        provider: Arc<CryptoProvider>,
        roots: RootCertStore,
        configured: Vec<CertificateDer<'static>>,
    ) -> Self {
        Self { provider, roots, configured }
    }

    fn chain(
        &self,
        server: &CertificateDer<'_>,
        parsed: &Certificate,
        others: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        let algorithms = self.provider.signature_verification_algorithms.all;
        if self.configured.iter().any(|configured| configured.as_ref() == server.as_ref()) {
            return usable_by_server(parsed, now);
        }
        if !is_authority(parsed)? {
            let server = ParsedCertificate::try_from(server)?;
            return verify_server_cert_signed_by_trust_anchor(&server, &self.roots, others, now, algorithms);
        }
        usable_by_server(parsed, now)?;
        check_critical_extensions(parsed)?;
        let read = |certificate: &CertificateDer<'_>| Certificate::from_der(certificate).ok();
        let others: Vec<Signer> = others
            .iter()
            .filter_map(|other| Some(Signer { certificate: read(other)?, is_root: false }))
            .collect();
        let system = rustls_native_certs::load_native_certs().certs;
        let roots = self.configured.iter().chain(&system);
        let mut signers: Vec<Signer> =
            roots.filter_map(|root| Some(Signer { certificate: read(root)?, is_root: true })).collect();
        signers.extend(others);
        let mut path = vec![(parsed.clone(), raw(server)?)];
        // Each step takes the first issuer that has signed: cross-signed paths are left to webpki.
        for depth in 0..MAX_PATH {
            let Some((signed, bytes)) = path.last() else { break };
            let signer = signers.iter().find(|signer| signer.has_signed(signed, bytes, self, now, depth));
            match signer {
                Some(signer) if signer.is_root => return Ok(()),
                Some(signer) => path.push((signer.certificate.clone(), signer.raw()?)),
                None => return Err(CertificateError::UnknownIssuer.into()),
            }
        }
        Err(CertificateError::UnknownIssuer.into())
    }
}

/// Returns the signed part of a certificate as it was received.
fn raw(certificate: &[u8]) -> Result<Vec<u8>, Error> {
    let content = AnyRef::from_der(certificate).map_err(bad_encoding)?.value();
    let mut parts = SliceReader::new(content).map_err(bad_encoding)?;
    parts.tlv_bytes().map(<[u8]>::to_vec).map_err(bad_encoding)
}

fn bad_encoding(_: x509_cert::der::Error) -> Error {
    CertificateError::BadEncoding.into()
}

/// A certificate that may have signed others.
struct Signer {
    certificate: Certificate,
    is_root: bool,
}

impl Signer {
    fn raw(&self) -> Result<Vec<u8>, Error> {
        raw(&self.certificate.to_der().map_err(bad_encoding)?)
    }

    fn has_signed(
        &self,
        signed: &Certificate,
        bytes: &[u8],
        identity: &ServerIdentity,
        now: UnixTime,
        depth: usize,
    ) -> bool {
        let own = self.certificate.tbs_certificate();
        own.subject() == signed.tbs_certificate().issuer()
            && check_validity(&self.certificate, now).is_ok()
            && self.may_sign(depth)
            && verifies(&self.certificate, signed, bytes, identity)
    }

    fn may_sign(&self, depth: usize) -> bool {
        let own = self.certificate.tbs_certificate();
        let constraints = own.get_extension::<BasicConstraints>();
        let authority = match constraints {
            Ok(Some((_, constraints))) => {
                let longest = constraints.path_len_constraint.map(usize::from);
                constraints.ca && longest.is_none_or(|longest| depth <= longest)
            }
            // A root of X.509 version 1 has no extensions.
            Ok(None) => self.is_root,
            Err(_) => false,
        };
        let usage = own.get_extension::<KeyUsage>();
        let signs = usage.is_ok_and(|usage| usage.is_none_or(|(_, usage)| usage.key_cert_sign()));
        authority && signs && check_critical_extensions(&self.certificate).is_ok()
    }
}

fn verifies(signer: &Certificate, signed: &Certificate, bytes: &[u8], identity: &ServerIdentity) -> bool {
    let key = signer.tbs_certificate().subject_public_key_info();
    let (Ok(key_algorithm), Ok(signature_algorithm)) =
        (key.algorithm.to_der(), signed.signature_algorithm().to_der())
    else {
        return false;
    };
    let (Some(public), Some(signature)) = (key.subject_public_key.as_bytes(), signed.signature().as_bytes())
    else {
        return false;
    };
    let content = |der: &[u8]| AnyRef::from_der(der).ok().map(|any| any.value().to_vec());
    let algorithms = identity.provider.signature_verification_algorithms.all.iter();
    let fitting = algorithms.filter(|algorithm| {
        content(&key_algorithm).as_deref() == Some(algorithm.public_key_alg_id().as_ref())
            && content(&signature_algorithm).as_deref() == Some(algorithm.signature_alg_id().as_ref())
    });
    fitting.into_iter().any(|algorithm| algorithm.verify_signature(public, bytes, signature).is_ok())
}

fn is_authority(certificate: &Certificate) -> Result<bool, Error> {
    let constraints = certificate.tbs_certificate().get_extension::<BasicConstraints>();
    Ok(constraints.map_err(bad_encoding)?.is_some_and(|(_, constraints)| constraints.ca))
}

/// Checks that a certificate is valid at this time, and permitted for servers.
fn usable_by_server(certificate: &Certificate, now: UnixTime) -> Result<(), Error> {
    check_validity(certificate, now)?;
    let usage = certificate.tbs_certificate().get_extension::<ExtendedKeyUsage>();
    match usage.map_err(bad_encoding)? {
        Some((_, ExtendedKeyUsage(purposes))) if !purposes.iter().any(|purpose| SERVER.contains(purpose)) => {
            Err(CertificateError::InvalidPurpose.into())
        }
        _ => Ok(()),
    }
}

fn check_validity(certificate: &Certificate, now: UnixTime) -> Result<(), Error> {
    let validity = certificate.tbs_certificate().validity();
    let now = Duration::from_secs(now.as_secs());
    if now < validity.not_before.to_unix_duration() {
        return Err(CertificateError::NotValidYet.into());
    }
    if now > validity.not_after.to_unix_duration() {
        return Err(CertificateError::Expired.into());
    }
    Ok(())
}

fn check_critical_extensions(certificate: &Certificate) -> Result<(), Error> {
    let extensions = certificate.tbs_certificate().extensions();
    let unsupported = |extension: &x509_cert::ext::Extension| {
        extension.critical && !SUPPORTED_EXTENSIONS.contains(&extension.extn_id)
    };
    if extensions.is_some_and(|extensions| extensions.iter().any(unsupported)) {
        return Err(CertificateError::UnhandledCriticalExtension.into());
    }
    Ok(())
}

/// Checks that a certificate is for a server of this name (RFC 6125, by the rules of Go).
fn check_name(certificate: &Certificate, name: &ServerName<'_>) -> Result<(), Error> {
    let names = certificate.tbs_certificate().get_extension::<SubjectAltName>();
    let names = names.map_err(bad_encoding)?.map(|(_, names)| names.0).unwrap_or_default();
    let fits = match name {
        ServerName::DnsName(server) => names.iter().any(|name| match name {
            GeneralName::DnsName(pattern) => matches(pattern.as_str(), server.as_ref()),
            _ => false,
        }),
        ServerName::IpAddress(server) => {
            let octets = match IpAddr::from(*server) {
                IpAddr::V4(address) => address.octets().to_vec(),
                IpAddr::V6(address) => address.octets().to_vec(),
            };
            names
                .iter()
                .any(|name| matches!(name, GeneralName::IpAddress(address) if address.as_bytes() == octets))
        }
        _ => false,
    };
    if fits { Ok(()) } else { Err(CertificateError::NotValidForName.into()) }
}

/// Returns whether a name matches a pattern. A star matches exactly the first label.
fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.to_ascii_lowercase(), name.to_ascii_lowercase());
    let (pattern, name) = (pattern.as_str(), name.strip_suffix('.').unwrap_or(&name));
    if pattern.is_empty() || name.is_empty() {
        return false;
    }
    match pattern.strip_prefix("*.") {
        Some(rest) => name.split_once('.').is_some_and(|(first, below)| !first.is_empty() && below == rest),
        None => pattern == name,
    }
}

impl ServerCertVerifier for ServerIdentity {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match Certificate::from_der(end_entity) {
            Ok(parsed) => {
                self.chain(end_entity, &parsed, intermediates, now)?;
                check_name(&parsed, server_name)?;
            }
            // webpki may accept a certificate that this parser rejects.
            Err(_) => {
                let algorithms = self.provider.signature_verification_algorithms.all;
                let server = ParsedCertificate::try_from(end_entity)?;
                verify_server_cert_signed_by_trust_anchor(
                    &server,
                    &self.roots,
                    intermediates,
                    now,
                    algorithms,
                )?;
                verify_server_name(&server, server_name)?;
            }
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests;
