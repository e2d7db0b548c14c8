//! What a layer takes from the layers below it. Layers are unpacked independently of one another and shared by images,
//! so what depends on the others is put into a small layer of its own just above: the metadata of folders that the layer
//! does not list, files of lower layers that it links to, and its part of folders that are links below.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use super::Inner;
use super::folders::read_json;
use super::graft::Graft;
use super::index::{LayerKey, Lease, lease};
use super::make::HalfMade;
use super::record::LayerRecord;
use crate::digest::{Algorithm, Digest};
use crate::error::{Error, blocking};

impl Inner {
    /// The layers of an image in their order, with a patch above each that needs one. A layer that comes twice is left
    /// only where it comes last: there it shows all that it has, and overlayfs refuses the same folder twice.
    pub(crate) async fn stack(self: &Arc<Self>, leases: Vec<Lease>) -> Result<Vec<Lease>, Error> {
        let mut seen = HashSet::new();
        let mut unique: Vec<Lease> =
            leases.into_iter().rev().filter(|lease| seen.insert(lease.key().clone())).collect();
        unique.reverse();
        let mut stack: Vec<Lease> = Vec::new();
        let mut chain: Option<Digest> = None;
        for lease in unique {
            let LayerKey::Diff(diff_id) = lease.key() else {
                return Err(Error::internal("stack layers", "a patch is no layer"));
            };
            // As the OCI image config's "ChainID", which names a layer together with all below it.
            let name = match &chain {
                Some(below) => format!("{below} {diff_id}"),
                None => diff_id.to_string(),
            };
            let id = Digest::of(Algorithm::Sha256, name.as_bytes());
            chain = Some(id.clone());
            stack.push(lease);
            if let Some(patch) = self.patch(id, &stack).await? {
                stack.push(patch);
            }
        }
        Ok(stack)
    }

    /// The patch for the topmost layer of a stack, if it needs one.
    async fn patch(self: &Arc<Self>, chain: Digest, stack: &[Lease]) -> Result<Option<Lease>, Error> {
        let Some(top) = stack.last().filter(|top| top.depends_on_others) else {
            return Ok(None);
        };
        let key = LayerKey::Patch(chain);
        if let Some(known) = lease(self, &key) {
            return Ok(Some(known));
        }
        let roots: Vec<PathBuf> =
            stack.iter().rev().map(|lease| self.folders.layer_fs(lease.key())).collect();
        let what = format!("layer {}", top.key());
        let file = self.folders.layer(top.key()).join("layer.json");
        let limit = self.options.limits.notes;
        let (needed_roots, needed_what, needed_file) = (roots.clone(), what.clone(), file.clone());
        let needed = blocking("compare layers", move || {
            let record = read_json(&needed_file)?;
            Graft::new(&needed_what, &needed_roots, &record, limit)?.is_needed()
        })
        .await?;
        if !needed {
            return Ok(None);
        }
        let make = |_, _| {
            let inner = self.clone();
            blocking("patch a layer", move || {
                let made = HalfMade::new(&inner)?;
                made.make_fs()?;
                Graft::new(&what, &roots, &read_json(&file)?, limit)?.build(&made.fs())?;
                Ok((Arc::new(made), LayerRecord::default()))
            })
        };
        self.lease_or_make(&key, None, make).await.map(Some)
    }
}
