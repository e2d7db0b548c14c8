//! Repairs the store: missing or changed parts are pulled again. It is for stores of which a part was deleted
//! manually, or that lost file owners while they were copied to another machine.

use std::collections::BTreeMap;

use super::verify::{CheckedPart, Part, Verdict, Verified};
use super::{ImageStore, Inner};
use crate::digest::Digest;
use crate::error::Error;
use crate::reference::Reference;

impl ImageStore {
    /// Verifies the store like [`Self::verify`], and pulls damaged parts again, by the names of their images
    /// and with the credentials of the node. The content is checked against its digests as in every pull, and
    /// against the ids of the images.
    ///
    /// # Errors
    /// The image does not exist.
    pub async fn repair(&self, name: Option<&str>) -> Result<Vec<Verified>, Error> {
        let inner = self.inner();
        let before = self.check_parts(name).await?;
        let mut failures: BTreeMap<Digest, String> = BTreeMap::new();
        for id in inner.mark_broken(&before, &mut failures) {
            if let Err(why) = self.pull_again(&id).await {
                failures.insert(id, why);
            }
        }
        // The result is verified again.
        let after = self.check_parts(name).await?;
        let checked = before.into_iter().map(|mut one| {
            if let Verdict::Broken(why) = one.verdict.clone() {
                one.verdict = match remaining_damage(&one, &after) {
                    None => Verdict::Repaired(why),
                    Some(damage) => {
                        let failed = one.images.iter().find_map(|id| failures.get(id));
                        Verdict::Broken(failed.map_or(damage.clone(), |failed| format!("{damage}; {failed}")))
                    }
                };
            }
            one
        });
        let checked = checked.collect();
        Ok(inner.shown(checked))
    }

    /// Pulls an image by one of its names. Names with a digest are tried first.
    async fn pull_again(&self, id: &Digest) -> Result<(), String> {
        let names = {
            let index = self.inner().index();
            let record = index.entry(id).map(|entry| entry.record.clone());
            record
                .into_iter()
                .flat_map(|record| record.digests.into_iter().chain(record.tags))
                .collect::<Vec<_>>()
        };
        let mut failure = "failed to pull it again: no registry is known that has it".to_owned();
        for name in names {
            let Ok(reference) = name.parse::<Reference>() else { continue };
            match self.pull(&reference, None).await {
                Ok(image) if image.id == *id => return Ok(()),
                Ok(image) => failure = format!("failed to pull it again: {name} is now image {}", image.id),
                Err(error) => failure = format!("failed to pull it again: {error}"),
            }
        }
        Err(failure)
    }
}

/// Returns the damage of a part that is still broken. A repaired part may have another kind: a damaged image
/// is checked by its config.
fn remaining_damage(one: &CheckedPart, after: &[CheckedPart]) -> Option<String> {
    let same = |other: &&CheckedPart| match (&one.part, &other.part) {
        (Part::Image(id) | Part::Config(id), Part::Image(other) | Part::Config(other)) => id == other,
        (part, other) => part == other,
    };
    match &after.iter().find(same)?.verdict {
        Verdict::Broken(why) => Some(why.clone()),
        _ => None,
    }
}

impl Inner {
    /// Marks the broken parts, so that they are created again when they are needed. Returns their images.
    /// Files of a running container are not changed.
    fn mark_broken(&self, parts: &[CheckedPart], failures: &mut BTreeMap<Digest, String>) -> Vec<Digest> {
        let mut ids: Vec<Digest> = Vec::new();
        let mut index = self.index();
        for CheckedPart { part, images, verdict } in parts {
            let Verdict::Broken(why) = verdict else { continue };
            let used = images.iter().find_map(|id| {
                let container = index.entry(id)?.containers().next()?;
                Some(format!("container {container} uses it: remove the container first"))
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
