//! Which images may come onto the node: a policy in the form of containers-policy.json(5), as podman, skopeo and CRI-O
//! read it. `file` is its format, `identity` whose image a signature is for, `signature` what a signature says and whether
//! a key made it. Read at each pull and for each container, so that a change needs no restart; a policy that cannot be read
//! lets nothing through.

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

/// The media type of what is signed.
const PAYLOAD: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
/// More signatures than anybody puts on an image.
const MAX_SIGNATURES: usize = 64;

/// What a policy has to say to an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ruling {
    /// The part of the policy that decides.
    pub(crate) scope: String,
    /// In words, one for each requirement.
    pub(crate) requirements: Vec<String>,
}

/// Refuses what the policy does not let through. `digests` are those of the manifests that lead to the image: a signature
/// of any of them covers what it names. The answer are the marks of the signatures that were verified ([`check_use`]).
///
/// # Errors
/// The policy is broken, rejects the image, or wants a signature that is not there.
pub(crate) async fn check_pull(
    file: &Path,
    repository: &Repository,
    reference: &Reference,
    digests: &[Digest],
) -> Result<Vec<String>, Error> {
    let Some(policy) = read(file).await? else { return Ok(Vec::new()) };
    let (scope, wanted) = signatures_wanted(file, &policy, reference)?;
    let (mut signatures, mut marks) = (None, Vec::new());
    for wanted in wanted {
        let keys = wanted.keys().await.map_err(|why| Error::untrusted(reference.to_string(), why))?;
        let found = match &mut signatures {
            Some(found) => found,
            none => none.insert(fetch(repository, digests).await?),
        };
        verify(reference, digests, found, wanted, &keys).map_err(|why| {
            Error::untrusted(reference.to_string(), format!("{why} (policy {}, {scope})", file.display()))
        })?;
        marks.push(mark(reference, wanted, &keys));
    }
    Ok(marks)
}

/// Whether an image that is here may be used, as the policy is now. `marks` are those of the signatures of the image that
/// were verified before: False where another signature is wanted, which has to be fetched.
///
/// # Errors
/// The policy is broken, or rejects the image.
pub(crate) async fn check_use(
    file: &Path,
    reference: &Reference,
    marks: &BTreeSet<String>,
) -> Result<bool, Error> {
    let Some(policy) = read(file).await? else { return Ok(true) };
    let (_, wanted) = signatures_wanted(file, &policy, reference)?;
    for wanted in wanted {
        let keys = wanted.keys().await.map_err(|why| Error::untrusted(reference.to_string(), why))?;
        if !marks.contains(&mark(reference, wanted, &keys)) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether there is a policy.
///
/// # Errors
/// It is broken.
pub(crate) async fn is_there(file: &Path) -> Result<bool, Error> {
    Ok(read(file).await?.is_some())
}

/// The signatures that an image must have, where nothing else keeps it away; and the part of the policy that says so.
fn signatures_wanted<'p>(
    file: &Path,
    policy: &'p Policy,
    reference: &Reference,
) -> Result<(String, Vec<&'p SigstoreSigned>), Error> {
    let (scope, requirements) = policy.requirements(&Transport::Registry(reference));
    let mut wanted = Vec::new();
    for requirement in requirements {
        match requirement {
            Requirement::InsecureAcceptAnything {} => {}
            Requirement::SigstoreSigned(signed) => wanted.push(&**signed),
            other => return Err(refused(file, &scope, reference, other)),
        }
    }
    Ok((scope, wanted))
}

/// Stands for a signature that was verified: by one of these keys, for an image of this name. Other keys or another name
/// make another mark.
fn mark(reference: &Reference, wanted: &SigstoreSigned, keys: &[Key]) -> String {
    let mut content = format!("{}\0{}", reference.identity(), wanted.identity()).into_bytes();
    for key in keys {
        content.push(0);
        content.extend_from_slice(Digest::of(Algorithm::Sha256, key.bytes()).to_string().as_bytes());
    }
    Digest::of(Algorithm::Sha256, &content).to_string()
}

/// The same for an archive, which has no signatures: only what accepts or rejects can be met.
///
/// # Errors
/// The policy is broken, or wants more of it.
pub(crate) async fn check_archive(file: &Path, transport: &Transport<'_>, name: &str) -> Result<(), Error> {
    let Some(policy) = read(file).await? else { return Ok(()) };
    let (scope, requirements) = policy.requirements(transport);
    match requirements.iter().find(|one| !matches!(one, Requirement::InsecureAcceptAnything {})) {
        Some(requirement) => {
            let why = format!("policy {}, {scope}: {}", file.display(), requirement.words());
            Err(Error::untrusted(name, why))
        }
        None => Ok(()),
    }
}

/// What a pull would have to meet; none without a policy.
///
/// # Errors
/// The policy is broken.
pub(crate) async fn explain(file: &Path, reference: &Reference) -> Result<Option<Ruling>, Error> {
    let Some(policy) = read(file).await? else { return Ok(None) };
    let (scope, requirements) = policy.requirements(&Transport::Registry(reference));
    Ok(Some(Ruling { scope, requirements: requirements.iter().map(Requirement::words).collect() }))
}

/// All that is wrong with a policy: that it cannot be read, or each of its keys that cannot.
pub(crate) async fn mistakes(file: &Path) -> Vec<String> {
    let policy = match read(file).await {
        Ok(Some(policy)) => policy,
        Ok(None) => return Vec::new(),
        Err(error) => return vec![error.to_string()],
    };
    let mut mistakes = Vec::new();
    for requirement in policy.all_requirements() {
        if let Requirement::SigstoreSigned(wanted) = requirement
            && let Err(why) = wanted.keys().await
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

fn refused(file: &Path, scope: &str, reference: &Reference, by: &Requirement) -> Error {
    Error::untrusted(reference.to_string(), format!("policy {}, {scope}: {}", file.display(), by.words()))
}

/// The signatures that the registry keeps beside an image, under a tag made of its digest (cosign's signature
/// specification, "Object Discovery").
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
                tracing::warn!(what, "more than {MAX_SIGNATURES} signatures: the rest is left out");
                return Ok(signatures);
            }
            let payload = repository.blob(&blob, MAX_SIGNATURE).await?;
            signatures.push(Signature { payload: payload.to_vec(), signature: signature.clone() });
        }
    }
    Ok(signatures)
}

/// Whether one of the signatures is by one of the keys, for this image under this name.
fn verify(
    reference: &Reference,
    digests: &[Digest],
    signatures: &[Signature],
    wanted: &SigstoreSigned,
    keys: &[Key],
) -> Result<(), String> {
    if signatures.is_empty() {
        return Err("it has no signature".to_owned());
    }
    let mut reasons = Vec::new();
    for signature in signatures {
        let valid = signature.claims(keys).and_then(|claims| {
            if !digests.contains(&claims.digest) {
                return Err(format!("a signature is for {}", claims.digest));
            }
            wanted.identity().check(reference, &claims.reference)
        });
        match valid {
            Ok(()) => return Ok(()),
            Err(why) => reasons.push(why),
        }
    }
    reasons.dedup();
    Err(reasons.join("; "))
}
