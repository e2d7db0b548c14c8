//! Pulling again what is missing or has changed: a part of the store was deleted by hand, or lost its owners on the way to
//! another machine.

use std::collections::BTreeMap;

use super::verify::{Found, Part, Verdict, Verified};
use super::{ImageStore, Inner};
use crate::digest::Digest;
use crate::error::Error;
use crate::reference::Reference;

impl ImageStore {
    /// As [`Self::verify`], and pulls again what is not sound, by the names that its images have and with the credentials
    /// of the node. What comes is held against its digests as in every pull, and so are the images' own.
    ///
    /// # Errors
    /// There is no image of that name.
    pub async fn repair(&self, name: Option<&str>) -> Result<Vec<Verified>, Error> {
        let inner = self.inner();
        let before = self.look_at(name).await?;
        let mut failures: BTreeMap<Digest, String> = BTreeMap::new();
        for id in inner.set_aside(&before, &mut failures) {
            if let Err(why) = self.pull_again(&id).await {
                failures.insert(id, why);
            }
        }
        // What it has come to is looked at, not believed.
        let after = self.look_at(name).await?;
        let found = before.into_iter().map(|mut one| {
            if let Verdict::Broken(why) = one.verdict.clone() {
                one.verdict = match still(&one, &after) {
                    None => Verdict::Repaired(why),
                    Some(still) => {
                        let failed = one.images.iter().find_map(|id| failures.get(id));
                        Verdict::Broken(failed.map_or(still.clone(), |failed| format!("{still}; {failed}")))
                    }
                };
            }
            one
        });
        let found = found.collect();
        Ok(inner.shown(found))
    }

    /// Pulls an image by one of its names; by those that name its content first.
    async fn pull_again(&self, id: &Digest) -> Result<(), String> {
        let names = {
            let index = self.inner().index();
            let record = index.entry(id).map(|entry| entry.record.clone());
            record
                .into_iter()
                .flat_map(|record| record.digests.into_iter().chain(record.tags))
                .collect::<Vec<_>>()
        };
        let mut failure = "it cannot be pulled again: no registry is known that has it".to_owned();
        for name in names {
            let Ok(reference) = name.parse::<Reference>() else { continue };
            match self.pull(&reference, None).await {
                Ok(image) if image.id == *id => return Ok(()),
                Ok(image) => failure = format!("{name} is another image now: {}", image.id),
                Err(error) => failure = format!("it cannot be pulled again: {error}"),
            }
        }
        Err(failure)
    }
}

/// Why a part is still broken, if it is. A part that is new again may be one of another kind: an image that was not whole
/// is looked at by its config.
fn still(one: &Found, after: &[Found]) -> Option<String> {
    let same = |other: &&Found| match (&one.part, &other.part) {
        (Part::Image(id) | Part::Config(id), Part::Image(other) | Part::Config(other)) => id == other,
        (part, other) => part == other,
    };
    match &after.iter().find(same)?.verdict {
        Verdict::Broken(why) => Some(why.clone()),
        _ => None,
    }
}

impl Inner {
    /// Has the broken parts made again as soon as somebody wants them; the images that do. Files that a running container
    /// sees are left as they are.
    fn set_aside(&self, found: &[Found], failures: &mut BTreeMap<Digest, String>) -> Vec<Digest> {
        let mut ids: Vec<Digest> = Vec::new();
        let mut index = self.index();
        for Found { part, images, verdict } in found {
            let Verdict::Broken(why) = verdict else { continue };
            let used = images.iter().find_map(|id| {
                let container = index.entry(id)?.containers().next()?;
                Some(format!("container {container} uses it: remove that first"))
            });
            match (part, used) {
                (Part::Layer(_), Some(used)) => {
                    failures.extend(images.iter().map(|id| (id.clone(), used.clone())));
                    continue;
                }
                (Part::Layer(key), None) => index.set_broken(key),
                (Part::Config(id), _) => index.damage(id, why.clone()),
                (Part::Image(_), _) => {}
            }
            for id in images {
                if !ids.contains(id) {
                    ids.push(id.clone());
                }
            }
        }
        ids
    }
}
