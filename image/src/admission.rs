//! Decides whether a container may use an image that is in the store. The policy is checked when an image is
//! pulled or loaded. It may have changed since, or the image may have been added without a policy. So it is
//! checked again for each container, as CRI-O does. Signatures that were verified once are recorded with the
//! image.

use crate::error::Error;
use crate::image::Image;
use crate::policy::{self, Transport};
use crate::reference::Reference;
use crate::store::{ImageStore, Names};

impl ImageStore {
    /// Checks an image against the policy, by the name in the container's request. If the image does not have
    /// this name, any of its names is sufficient, or any of the archives that it was loaded from.
    ///
    /// # Errors
    /// The policy is invalid or rejects the image, or a signature that it requires is missing.
    pub async fn check_policy(&self, image: &Image, name: &str) -> Result<(), Error> {
        let Some(file) = &self.inner().options.policy else { return Ok(()) };
        if !policy::exists(file).await? {
            return Ok(());
        }
        let mut refusal = None;
        for reference in references(image, name) {
            match self.check_reference(image, &reference).await {
                Ok(()) => return Ok(()),
                Err(error) => drop(refusal.get_or_insert(error)),
            }
        }
        for origin in self.inner().origins(&image.id) {
            let Some(transport) = Transport::of_origin(&origin) else { continue };
            match policy::check_archive(file, &transport, &origin).await {
                Ok(()) => return Ok(()),
                Err(error) => drop(refusal.get_or_insert(error)),
            }
        }
        let unnamed = || {
            Error::untrusted(image.id.to_string(), "the image has no name that the policy can be applied to")
        };
        Err(refusal.unwrap_or_else(unnamed))
    }

    async fn check_reference(&self, image: &Image, reference: &Reference) -> Result<(), Error> {
        let inner = self.inner();
        let Some(file) = &inner.options.policy else { return Ok(()) };
        if policy::check_use(file, reference, &inner.verified(&image.id)).await? {
            return Ok(());
        }
        let repository = inner.registry.repository(reference, None).await?;
        let verified = policy::check_pull(file, &repository, reference, &image.manifests).await?;
        let names = Names { verified, ..Names::default() };
        inner.name_image(&image.id, names, image.size).await.map(drop)
    }
}

/// Returns the name to check against the policy: `name` if the image has it, otherwise all names of the
/// image.
fn references(image: &Image, name: &str) -> Vec<Reference> {
    let is_own = |reference: &Reference| match reference.digest() {
        Some(digest) => image.repo_digests.contains(&reference.with_digest(digest)),
        None => reference.tagged().is_some_and(|tagged| image.repo_tags.contains(&tagged)),
    };
    if let Some(requested) = name.parse::<Reference>().ok().filter(is_own) {
        return vec![requested];
    }
    let all = image.repo_tags.iter().chain(&image.repo_digests);
    all.filter_map(|name| name.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::{Algorithm, Digest};

    #[test]
    fn the_requested_name_decides_if_the_image_has_it() {
        let digest = Digest::of(Algorithm::Sha256, b"manifest");
        let image = Image {
            id: Digest::of(Algorithm::Sha256, b"config"),
            repo_tags: vec!["r.test/a:1".to_owned(), "docker.io/library/b:latest".to_owned()],
            repo_digests: vec![format!("r.test/a@{digest}")],
            size: 0,
            config: crate::config::ImageConfig::default(),
            layers: Vec::new(),
            pinned: false,
            artifact: false,
            manifests: vec![digest.clone()],
            checkpoint: false,
        };
        let of = |name: &str| references(&image, name).iter().map(Reference::to_string).collect::<Vec<_>>();
        assert_eq!(of("b"), ["docker.io/library/b:latest"]);
        assert_eq!(of(&format!("r.test/a:2@{digest}")).len(), 1);
        for other in ["r.test/a:2", "", &image.id.to_string(), "cafe"] {
            assert_eq!(of(other).len(), 3, "{other}");
        }
    }
}
