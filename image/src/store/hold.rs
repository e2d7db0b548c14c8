//! Keeps images and layers on the disk while they are used: holds of images, and leases of layers whose image
//! is not recorded yet.

use std::fmt;
use std::sync::{Arc, Weak};

use super::Inner;
use super::jobs::DeletionJob;
use super::layer_key::LayerKey;
use crate::digest::Digest;
use crate::error::Error;

/// Keeps an image's layers on the disk until it is dropped.
pub struct Hold {
    inner: Weak<Inner>,
    id: Digest,
    owner: String,
}

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hold").field("image", &self.id).field("owner", &self.owner).finish()
    }
}

pub(super) fn keep(inner: &Arc<Inner>, id: &Digest, owner: &str) -> Result<Hold, Error> {
    let owner = format!("hold by {owner}");
    inner.index().add_user(id, &owner)?;
    Ok(Hold { inner: Arc::downgrade(inner), id: id.clone(), owner })
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let Some(inner) = self.inner.upgrade() {
            let collect = inner.index().drop_user(&self.id, &self.owner);
            if collect {
                inner.reaper.send(DeletionJob::Purge(self.id.clone()));
            }
        }
    }
}

/// Keeps one layer on the disk while its image is being created.
pub(crate) struct Lease {
    inner: Weak<Inner>,
    key: LayerKey,
    /// Whether the layer may need a patch above other layers.
    pub(super) depends_on_others: bool,
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Lease").field(&self.key).finish()
    }
}

impl Lease {
    pub(crate) fn key(&self) -> &LayerKey {
        &self.key
    }
}

/// Leases a layer if it exists.
pub(super) fn lease(inner: &Arc<Inner>, key: &LayerKey) -> Option<Lease> {
    let depends_on_others = inner.index().add_reference(key)?;
    Some(Lease { inner: Arc::downgrade(inner), key: key.clone(), depends_on_others })
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(inner) = self.inner.upgrade() {
            let unused = inner.index().drop_references(std::slice::from_ref(&self.key));
            if !unused.is_empty() {
                inner.reaper.send(DeletionJob::Collect(unused));
            }
        }
    }
}
