//! NRI: events, changes of containers, validation, and plugins that fail. Runs as root.

mod adjustments;
mod events;
mod failures;
mod plugin;
mod programs;
mod updates;
mod validation;

use std::path::PathBuf;

use berth_proto::nri::{ContainerAdjustment, CreateContainerRequest, CreateContainerResponse};
use prost::Message;

use crate::support::Berth;
use plugin::Reaction;

fn socket(berth: &Berth) -> PathBuf {
    berth.path("run/nri.sock")
}

/// Answers CreateContainer of containers with a name by this change.
fn adjusting(
    name: &'static str,
    change: ContainerAdjustment,
) -> impl FnMut(&str, &[u8]) -> Option<Reaction> + Send + 'static {
    move |method, payload| {
        if method != "CreateContainer" {
            return None;
        }
        let request = CreateContainerRequest::decode(payload).unwrap();
        (request.container.unwrap().name == name).then(|| {
            Reaction::answer(&CreateContainerResponse {
                adjust: Some(change.clone()),
                ..CreateContainerResponse::default()
            })
        })
    }
}
