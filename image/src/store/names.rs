//! The names by which an image is recorded.

use crate::digest::Digest;
use crate::reference::Reference;

/// The names of an image, with its manifests, signatures and origins.
#[derive(Clone, Debug, Default)]
pub(crate) struct Names {
    pub(crate) tags: Vec<String>,
    pub(crate) digests: Vec<String>,
    pub(crate) manifests: Vec<Digest>,
    /// The marks of verified signatures.
    pub(crate) verified: Vec<String>,
    /// The archives that it was loaded from.
    pub(crate) origins: Vec<String>,
    /// A manifest marks it as the checkpoint of a container.
    pub(crate) checkpoint: bool,
}

impl Names {
    /// Returns the names from a pull of `reference`. The first of the manifests is the one of the reference.
    pub(crate) fn pulled(reference: &Reference, manifests: Vec<Digest>) -> Self {
        let digests = manifests.first().map(|digest| reference.with_digest(digest)).into_iter().collect();
        let tags = reference.tagged().into_iter().collect();
        Self { tags, digests, manifests, ..Self::default() }
    }
}
