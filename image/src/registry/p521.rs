//! Signatures with the curve P-521, which Go supports and *ring* does not.

use std::sync::{Arc, LazyLock};

use p521::ecdsa::signature::hazmat::PrehashVerifier as _;
use p521::ecdsa::{Signature, VerifyingKey};
use rustls::SignatureScheme;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring};
use rustls_pki_types::{AlgorithmIdentifier, InvalidSignature, SignatureVerificationAlgorithm, alg_id};
use sha2::{Digest as _, Sha256, Sha384, Sha512};

/// ECDSA with P-521 and the hash that certificates specify (RFC 5758, 3.2). TLS 1.3 uses SHA-512 (RFC 8446,
/// 4.2.3, `ecdsa_secp521r1_sha512`). openssl signs with SHA-256 by default.
#[derive(Debug)]
enum EcdsaP521 {
    Sha256,
    Sha384,
    Sha512,
}

impl EcdsaP521 {
    /// Returns the hash as a number, padded with leading zeros to the longest hash. Padding does not change
    /// its value, and a hash shorter than the curve is not truncated (FIPS 186-5, 6.4.2).
    fn hash(&self, message: &[u8]) -> [u8; 64] {
        let hash = match self {
            Self::Sha256 => Sha256::digest(message).to_vec(),
            Self::Sha384 => Sha384::digest(message).to_vec(),
            Self::Sha512 => Sha512::digest(message).to_vec(),
        };
        let mut number = [0; 64];
        number.iter_mut().rev().zip(hash.iter().rev()).for_each(|(to, from)| *to = *from);
        number
    }
}

impl SignatureVerificationAlgorithm for EcdsaP521 {
    fn verify_signature(
        &self,
        public_key: &[u8],
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), InvalidSignature> {
        let key = VerifyingKey::from_sec1_bytes(public_key).map_err(|_| InvalidSignature)?;
        let signature = Signature::from_der(signature).map_err(|_| InvalidSignature)?;
        key.verify_prehash(&self.hash(message), &signature).map_err(|_| InvalidSignature)
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        alg_id::ECDSA_P521
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        match self {
            Self::Sha256 => alg_id::ECDSA_SHA256,
            Self::Sha384 => alg_id::ECDSA_SHA384,
            Self::Sha512 => alg_id::ECDSA_SHA512,
        }
    }
}

static OWN: [&dyn SignatureVerificationAlgorithm; 3] =
    [&EcdsaP521::Sha256, &EcdsaP521::Sha384, &EcdsaP521::Sha512];
static ALL: LazyLock<Vec<&'static dyn SignatureVerificationAlgorithm>> = LazyLock::new(|| {
    let ring = ring::default_provider().signature_verification_algorithms.all;
    ring.iter().copied().chain(OWN).collect()
});
static MAPPING: LazyLock<Vec<Mapping>> = LazyLock::new(|| {
    let ring = ring::default_provider().signature_verification_algorithms.mapping;
    let own: Mapping = (SignatureScheme::ECDSA_NISTP521_SHA512, &[&EcdsaP521::Sha512]);
    ring.iter().copied().chain([own]).collect()
});

type Mapping = (SignatureScheme, &'static [&'static dyn SignatureVerificationAlgorithm]);

/// Returns *ring*'s provider with support for P-521.
pub(super) fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
        let algorithms = WebPkiSupportedAlgorithms { all: ALL.as_slice(), mapping: MAPPING.as_slice() };
        Arc::new(CryptoProvider { signature_verification_algorithms: algorithms, ..ring::default_provider() })
    });
    PROVIDER.clone()
}
