//! The policy that decides which images may be used, in the format of containers-policy.json(5), which
//! podman, skopeo and CRI-O read. `file` is its format, `identity` compares names in signatures, `signature`
//! verifies signatures. The policy is read at each pull and for each container, so a change needs no restart.
//! If the policy cannot be read, all images are rejected.

mod file;
mod identity;
mod signature;

use std::collections::BTreeSet;
use std::path::Path;

use crate::digest::{Algorithm, Digest};
use crate::error::{Error, ErrorKind, blocking};
use crate::manifest::signature_blobs;
use crate::reference::Reference;
use crate::registry::Repository;

use file::{Policy, Requirement, SigstoreSigned};
use signature::{Key, MAX_SIGNATURE, Signature};

pub(crate) use file::Transport;

/// The media type of the signed payload.
const PAYLOAD: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
/// The most signatures of an image that are checked.
const MAX_SIGNATURES: usize = 64;

/// The decision of a policy on an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ruling {
    /// The scope of the policy that applies.
    pub(crate) scope: String,
    /// The description of each requirement.
    pub(crate) requirements: Vec<String>,
}

/// Checks a pulled image against the policy. `digests` are those of the manifests that lead to the image: a
/// signature of any of them covers the image. Returns the marks of the verified signatures ([`check_use`]).
///
/// # Errors
/// The policy is invalid, rejects the image, or requires a signature that is missing.
pub(crate) async fn check_pull(
    file: &Path,
    repository: &Repository,
    reference: &Reference,
    digests: &[Digest],
) -> Result<Vec<String>, Error> {
    let Some(policy) = read(file).await? else { return Ok(Vec::new()) };
    let (scope, required) = required_signatures(file, &policy, reference)?;
    let (mut signatures, mut marks) = (None, Vec::new());
    for requirement in required {
        let keys = requirement.keys().await.map_err(|why| Error::untrusted(reference.to_string(), why))?;
        let fetched = match &mut signatures {
            Some(fetched) => fetched,
            none => none.insert(fetch(repository, digests).await?),
        };
        verify(reference, digests, fetched, requirement, &keys).map_err(|why| {
            Error::untrusted(reference.to_string(), format!("{why} (policy {}, {scope})", file.display()))
        })?;
        marks.push(mark(reference, requirement, &keys));
    }
    Ok(marks)
}

/// Checks an image of the store against the current policy. `marks` are those of the image's signatures that
/// were verified before. Returns false if another signature is required, which must be fetched.
///
/// # Errors
/// The policy is invalid, or rejects the image.
pub(crate) async fn check_use(
    file: &Path,
    reference: &Reference,
    marks: &BTreeSet<String>,
) -> Result<bool, Error> {
    let Some(policy) = read(file).await? else { return Ok(true) };
    let (_, required) = required_signatures(file, &policy, reference)?;
    for requirement in required {
        let keys = requirement.keys().await.map_err(|why| Error::untrusted(reference.to_string(), why))?;
        if !marks.contains(&mark(reference, requirement, &keys)) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Returns whether there is a policy.
///
/// # Errors
/// The policy is invalid.
pub(crate) async fn exists(file: &Path) -> Result<bool, Error> {
    Ok(read(file).await?.is_some())
}

/// Returns the scope that applies to an image, and the signatures that it requires. Returns an error if
/// another requirement rejects the image.
fn required_signatures<'p>(
    file: &Path,
    policy: &'p Policy,
    reference: &Reference,
) -> Result<(String, Vec<&'p SigstoreSigned>), Error> {
    let (scope, requirements) = policy.requirements(&Transport::Registry(reference));
    let mut required = Vec::new();
    for requirement in requirements {
        match requirement {
            Requirement::InsecureAcceptAnything {} => {}
            Requirement::SigstoreSigned(signed) => required.push(&**signed),
            other => return Err(rejected(file, &scope, reference, other)),
        }
    }
    Ok((scope, required))
}

/// Returns a mark that identifies a verified signature: by one of these keys, for an image of this name.
/// Other keys or another name give another mark.
fn mark(reference: &Reference, requirement: &SigstoreSigned, keys: &[Key]) -> String {
    let mut content = format!("{}\0{}", reference.identity(), requirement.identity()).into_bytes();
    for key in keys {
        content.push(0);
        content.extend_from_slice(Digest::of(Algorithm::Sha256, key.bytes()).to_string().as_bytes());
    }
    Digest::of(Algorithm::Sha256, &content).to_string()
}

/// Checks an archive against the policy. Archives have no signatures, so each requirement must accept any
/// image.
///
/// # Errors
/// The policy is invalid, rejects the archive, or requires a signature.
pub(crate) async fn check_archive(file: &Path, transport: &Transport<'_>, name: &str) -> Result<(), Error> {
    let Some(policy) = read(file).await? else { return Ok(()) };
    let (scope, requirements) = policy.requirements(transport);
    match requirements.iter().find(|one| !matches!(one, Requirement::InsecureAcceptAnything {})) {
        Some(requirement) => {
            let why = format!("policy {}, {scope}: {}", file.display(), requirement.describe());
            Err(Error::untrusted(name, why))
        }
        None => Ok(()),
    }
}

/// Returns the requirements on a pull. None without a policy.
///
/// # Errors
/// The policy is invalid.
pub(crate) async fn explain(file: &Path, reference: &Reference) -> Result<Option<Ruling>, Error> {
    let Some(policy) = read(file).await? else { return Ok(None) };
    let (scope, requirements) = policy.requirements(&Transport::Registry(reference));
    Ok(Some(Ruling { scope, requirements: requirements.iter().map(Requirement::describe).collect() }))
}

/// Returns all mistakes of a policy: that it cannot be read, or each key that cannot be read.
pub(crate) async fn mistakes(file: &Path) -> Vec<String> {
    let policy = match read(file).await {
        Ok(Some(policy)) => policy,
        Ok(None) => return Vec::new(),
        Err(error) => return vec![error.to_string()],
    };
    let mut mistakes = Vec::new();
    for requirement in policy.all_requirements() {
        if let Requirement::SigstoreSigned(signed) = requirement
            && let Err(why) = signed.keys().await
        {
            mistakes.push(format!("policy {}: {why}", file.display()));
        }
    }
    mistakes
}

/// Parses a policy, for the fuzz targets.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn parse(bytes: &[u8]) {
    drop(Policy::parse(bytes));
    drop(Key::from_pem(bytes));
}

async fn read(file: &Path) -> Result<Option<Policy>, Error> {
    let path = file.to_owned();
    blocking("read the policy", move || Policy::read(&path)).await
}

fn rejected(file: &Path, scope: &str, reference: &Reference, by: &Requirement) -> Error {
    Error::untrusted(reference.to_string(), format!("policy {}, {scope}: {}", file.display(), by.describe()))
}

/// Fetches the signatures of an image. They are stored under a tag that is made from its digest (cosign's
/// signature specification, "Object Discovery").
async fn fetch(repository: &Repository, digests: &[Digest]) -> Result<Vec<Signature>, Error> {
    let mut signatures = Vec::new();
    for digest in digests {
        let tag = format!("{}-{}.sig", digest.algorithm().as_str(), digest.hex());
        let fetched = match repository.manifest_by_tag(&tag).await {
            Ok(fetched) => fetched,
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        let what = format!("signatures {}:{tag}", repository.name());
        for blob in signature_blobs(&what, &fetched.bytes)? {
            let Some(signature) = blob.annotations.signature.as_ref().filter(|_| blob.media_type == PAYLOAD)
            else {
                continue;
            };
            if signatures.len() == MAX_SIGNATURES {
                tracing::warn!(what, "more than {MAX_SIGNATURES} signatures, skipped the rest");
                return Ok(signatures);
            }
            let payload = repository.blob(&blob, MAX_SIGNATURE).await?;
            signatures.push(Signature { payload: payload.to_vec(), signature: signature.clone() });
        }
    }
    Ok(signatures)
}

/// Checks that one of the signatures is valid: by one of the keys, for this image and this name.
fn verify(
    reference: &Reference,
    digests: &[Digest],
    signatures: &[Signature],
    requirement: &SigstoreSigned,
    keys: &[Key],
) -> Result<(), String> {
    if signatures.is_empty() {
        return Err("the image has no signature".to_owned());
    }
    let mut reasons = Vec::new();
    for signature in signatures {
        let valid = signature.claims(keys).and_then(|claims| {
            if !digests.contains(&claims.digest) {
                return Err(format!("the signature is for {}", claims.digest));
            }
            requirement.identity().check(reference, &claims.reference)
        });
        match valid {
            Ok(()) => return Ok(()),
            Err(why) => reasons.push(why),
        }
    }
    reasons.dedup();
    Err(reasons.join("; "))
}
