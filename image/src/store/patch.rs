//! Patches: the parts of a layer that depend on the layers below. Layers are unpacked independently of one
//! another and shared by images. So these parts are stored in a small separate layer directly above: the
//! metadata of folders that the layer does not list, files of lower layers that it links to, and the content
//! of its folders that are symbolic links in lower layers.
//!
//! Whether a layer needs a patch depends on its chain, the layer with all layers below it. For a chain of an
//! image in the store the answer is known.

use std::cell::RefCell;
use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use super::Inner;
use super::folders::read_json;
use super::hold::{Lease, lease};
use super::layer_key::LayerKey;
use super::merged::Merged;
use super::patch_input::PatchInput;
use super::record::LayerRecord;
use super::staging::StagingFolder;
use crate::digest::{Algorithm, Digest};
use crate::error::{Error, blocking};

/// The memory for the dependencies between all layers of an image, as a multiple of the limit on one layer's
/// notes.
const MERGED_LIMIT_FACTOR: u64 = 4;

/// The layers of an image while they are stacked.
struct Stacking<'a> {
    inner: &'a Arc<Inner>,
    /// The layers, the bottom one first, without patches.
    layers: Vec<Lease>,
    /// For the lower layers that another image has as well: whether it has a patch there.
    has_patch: Vec<bool>,
    stacked: Vec<PathBuf>,
    view: Option<Arc<Mutex<MergedView>>>,
}

/// The merged view of the layers that were read.
struct MergedView {
    merged: RefCell<Merged>,
    pushed: usize,
}

/// One layer above those that are stacked.
#[derive(Clone)]
struct Layer {
    what: String,
    fs: PathBuf,
    /// The path of its record.
    file: PathBuf,
    below: Vec<PathBuf>,
    limit: u64,
}

impl Inner {
    /// Returns the layers of an image in their order, with a patch above each that needs one. If a layer
    /// occurs twice, only its last occurrence is kept: there all of it is visible, and overlayfs rejects a
    /// duplicate folder.
    pub(crate) async fn stack(self: &Arc<Self>, leases: Vec<Lease>) -> Result<Vec<Lease>, Error> {
        let mut seen = HashSet::new();
        let mut layers: Vec<Lease> =
            leases.into_iter().rev().filter(|lease| seen.insert(lease.key().clone())).collect();
        layers.reverse();
        let chains = chains(&layers)?;
        let keys: Vec<&LayerKey> = layers.iter().map(Lease::key).collect();
        let has_patch = self.index().patched(&keys);
        let mut stacking = Stacking { inner: self, layers, has_patch, stacked: Vec::new(), view: None };
        let mut patches = Vec::new();
        for (place, chain) in chains.into_iter().enumerate() {
            let patch = stacking.patch(place, chain).await?;
            stacking.put(place, patch.as_ref());
            patches.push(patch);
        }
        let pairs = stacking.layers.into_iter().zip(patches);
        Ok(pairs.flat_map(|(layer, patch)| std::iter::once(layer).chain(patch)).collect())
    }
}

/// Returns the ids of the chains, each of which identifies a layer and all layers below it (OCI image config,
/// "ChainID").
fn chains(layers: &[Lease]) -> Result<Vec<Digest>, Error> {
    let mut chains: Vec<Digest> = Vec::new();
    for lease in layers {
        let LayerKey::Diff(diff_id) = lease.key() else {
            return Err(Error::internal("stack layers", "a patch is not a layer"));
        };
        let name = match chains.last() {
            Some(below) => format!("{below} {diff_id}"),
            None => diff_id.to_string(),
        };
        chains.push(Digest::of(Algorithm::Sha256, name.as_bytes()));
    }
    Ok(chains)
}

impl Stacking<'_> {
    /// Returns the patch of the next layer, if it needs one.
    async fn patch(&mut self, place: usize, chain: Digest) -> Result<Option<Lease>, Error> {
        if !self.layers.get(place).is_some_and(|layer| layer.depends_on_others) {
            return Ok(None);
        }
        let key = LayerKey::Patch(chain);
        if let Some(existing) = lease(self.inner, &key) {
            return Ok(Some(existing));
        }
        if self.has_patch.get(place) == Some(&false) {
            return Ok(None);
        }
        let Some(layer) = self.layer(place) else { return Ok(None) };
        let view = match &self.view {
            Some(view) => view.clone(),
            None => self.begin(place).await?,
        };
        let (shared_view, at) = (view.clone(), layer.clone());
        if !blocking("compare layers", move || at.is_needed(&shared_view)).await? {
            return Ok(None);
        }
        let make = |_, _| {
            let inner = self.inner.clone();
            blocking("patch a layer", move || {
                let staging = StagingFolder::new(&inner)?;
                staging.create_fs()?;
                layer.build(&view, &staging)?;
                Ok((Arc::new(staging), LayerRecord::default()))
            })
        };
        self.inner.lease_or_create(&key, None, make).await.map(Some)
    }

    fn put(&mut self, place: usize, patch: Option<&Lease>) {
        let folders = &self.inner.folders;
        self.stacked
            .extend(self.layers.get(place).into_iter().chain(patch).map(|one| folders.layer_fs(one.key())));
    }

    fn layer(&self, place: usize) -> Option<Layer> {
        let key = self.layers.get(place)?.key();
        let folders = &self.inner.folders;
        Some(Layer {
            what: format!("layer {key}"),
            fs: folders.layer_fs(key),
            file: folders.layer(key).join("layer.json"),
            below: self.stacked.clone(),
            limit: self.inner.options.limits.notes,
        })
    }

    /// Announces the paths that this layer and those above it will look up.
    async fn begin(&mut self, place: usize) -> Result<Arc<Mutex<MergedView>>, Error> {
        let folders = &self.inner.folders;
        let dependent = self.layers.iter().enumerate().skip(place);
        let dependent = dependent
            .filter(|(place, layer)| layer.depends_on_others && self.has_patch.get(*place) != Some(&false));
        let files: Vec<PathBuf> =
            dependent.map(|(_, layer)| folders.layer(layer.key()).join("layer.json")).collect();
        let limit = self.inner.options.limits.notes.saturating_mul(MERGED_LIMIT_FACTOR);
        let merged = blocking("read the records of layers", move || {
            let mut merged = Merged::new(limit);
            for file in files {
                let record: LayerRecord = read_json(&file)?;
                record
                    .implicit
                    .iter()
                    .chain(record.links.values())
                    .try_for_each(|path| merged.expect(path))?;
            }
            Ok(merged)
        })
        .await?;
        let view = Arc::new(Mutex::new(MergedView { merged: RefCell::new(merged), pushed: 0 }));
        self.view = Some(view.clone());
        Ok(view)
    }
}

impl Layer {
    fn is_needed(&self, view: &Mutex<MergedView>) -> Result<bool, Error> {
        self.with_input(view, |input| input.is_needed())
    }

    fn build(&self, view: &Mutex<MergedView>, staging: &StagingFolder) -> Result<(), Error> {
        self.with_input(view, |input| input.build(&staging.fs()))
    }

    fn with_input<T>(
        &self,
        view: &Mutex<MergedView>,
        work: impl FnOnce(&PatchInput<'_>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut view = view.lock().unwrap_or_else(PoisonError::into_inner);
        for root in self.below.iter().skip(view.pushed) {
            view.merged.borrow_mut().push(root)?;
        }
        view.pushed = self.below.len();
        let record = read_json(&self.file)?;
        work(&PatchInput::new(&self.what, &self.fs, &view.merged, &record, self.limit)?)
    }
}
