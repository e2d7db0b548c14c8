//! Signatures of cosign: a payload in the "simple signing" format (containers-signature(5)), and a signature
//! of its bytes by a key.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA256_ASN1, ED25519, RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey,
    VerificationAlgorithm,
};
use rustls_pki_types::SubjectPublicKeyInfoDer;
use rustls_pki_types::pem::PemObject as _;
use serde::Deserialize;
use spki::{ObjectIdentifier, SubjectPublicKeyInfoRef};

use crate::digest::Digest;

/// The largest payload, in bytes. It contains a name and a digest.
pub(super) const MAX_SIGNATURE: u64 = 256 << 10;
/// The types of a payload. That of podman differs in the first word (containers-signature(5),
/// `critical.type`).
const TYPES: [&str; 2] = ["cosign container image signature", "atomic container signature"];

// RFC 5480, RFC 8017 and RFC 8410.
const EC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
const P384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");
const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const ED: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");

/// A signature and its payload, not verified.
#[derive(Debug)]
pub(super) struct Signature {
    pub(super) payload: Vec<u8>,
    /// In base64.
    pub(super) signature: String,
}

/// The content of a valid signature.
#[derive(Debug)]
pub(super) struct Claims {
    /// The name of the image.
    pub(super) reference: String,
    /// The digest of the image's manifest.
    pub(super) digest: Digest,
}

#[derive(Deserialize)]
struct Payload {
    critical: Critical,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Critical {
    identity: PayloadIdentity,
    image: PayloadImage,
    r#type: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PayloadIdentity {
    #[serde(rename = "docker-reference")]
    docker_reference: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PayloadImage {
    #[serde(rename = "docker-manifest-digest")]
    docker_manifest_digest: Digest,
}

impl Signature {
    /// Verifies the signature by the keys, then parses the payload. The payload is not parsed before.
    pub(super) fn claims(&self, keys: &[Key]) -> Result<Claims, String> {
        let signature = STANDARD
            .decode(&self.signature)
            .map_err(|error| format!("the signature is not base64: {error}"))?;
        if !keys.iter().any(|key| key.verifies(&self.payload, &signature)) {
            return Err("the signature was not made by any of the keys".to_owned());
        }
        let payload: Payload = berth_json::from_slice(&self.payload)
            .map_err(|error| format!("the payload of the signature is invalid: {error}"))?;
        let Critical { identity, image, r#type } = payload.critical;
        if !TYPES.contains(&r#type.as_str()) {
            return Err(format!("the signature has the type {:?}", r#type));
        }
        Ok(Claims { reference: identity.docker_reference, digest: image.docker_manifest_digest })
    }
}

/// A public key.
pub(super) struct Key {
    algorithm: &'static dyn VerificationAlgorithm,
    bytes: Vec<u8>,
}

impl Key {
    /// Parses the format that `cosign generate-key-pair` and openssl write.
    pub(super) fn from_pem(text: &[u8]) -> Result<Self, String> {
        let der = SubjectPublicKeyInfoDer::from_pem_slice(text)
            .map_err(|error| format!("not a public key in PEM format: {error:?}"))?;
        let info =
            SubjectPublicKeyInfoRef::try_from(der.as_ref()).map_err(|error| format!("corrupt: {error}"))?;
        let curve = info.algorithm.parameters.and_then(|any| any.decode_as::<ObjectIdentifier>().ok());
        let algorithm: &'static dyn VerificationAlgorithm = match (info.algorithm.oid, curve) {
            (EC, Some(P256)) => &ECDSA_P256_SHA256_ASN1,
            (EC, Some(P384)) => &ECDSA_P384_SHA256_ASN1,
            (RSA, _) => &RSA_PKCS1_2048_8192_SHA256,
            (ED, _) => &ED25519,
            (other, _) => {
                return Err(format!(
                    "unsupported algorithm {other}: P-256, P-384, RSA and Ed25519 are supported"
                ));
            }
        };
        let bytes = info.subject_public_key.as_bytes().ok_or("corrupt: it has unused bits")?.to_vec();
        Ok(Self { algorithm, bytes })
    }

    /// Returns the bytes that identify the key.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(self.algorithm, &self.bytes).verify(message, signature).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(kind: &str) -> Vec<u8> {
        let digest = format!("sha256:{}", "ab".repeat(32));
        serde_json::json!({
            "critical": {
                "identity": { "docker-reference": "r.example/a:1" },
                "image": { "docker-manifest-digest": digest },
                "type": kind,
            },
            "optional": null,
        })
        .to_string()
        .into_bytes()
    }

    fn signed(pair: &rcgen::KeyPair, payload: Vec<u8>) -> Signature {
        use rcgen::SigningKey as _;
        let signature = STANDARD.encode(pair.sign(&payload).unwrap());
        Signature { payload, signature }
    }

    #[test]
    fn only_signatures_by_the_keys_are_accepted() {
        for algorithm in [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ED25519] {
            let pair = rcgen::KeyPair::generate_for(algorithm).unwrap();
            let other = rcgen::KeyPair::generate_for(algorithm).unwrap();
            let key = || Key::from_pem(pair.public_key_pem().as_bytes()).unwrap();
            let unknown = Key::from_pem(other.public_key_pem().as_bytes()).unwrap();
            let signature = signed(&pair, payload(TYPES[0]));
            assert!(signature.claims(&[]).is_err());
            assert!(
                signature.claims(std::slice::from_ref(&unknown)).unwrap_err().contains("any of the keys")
            );
            assert_eq!(signature.claims(&[unknown, key()]).unwrap().reference, "r.example/a:1");
            let mut changed = signed(&pair, payload(TYPES[0]));
            changed.payload.push(b' ');
            assert!(changed.claims(&[key()]).is_err());
            let other_kind = signed(&pair, payload("something else"));
            assert!(other_kind.claims(&[key()]).unwrap_err().contains("something else"));
            assert!(signed(&pair, b"{}".to_vec()).claims(&[key()]).is_err());
        }
    }

    #[test]
    fn invalid_keys_are_rejected() {
        for text in ["", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "ssh-ed25519 AAAA"] {
            assert!(Key::from_pem(text.as_bytes()).is_err(), "{text}");
        }
        let large = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        assert!(Key::from_pem(large.public_key_pem().as_bytes()).is_ok());
    }
}
