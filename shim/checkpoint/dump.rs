//! The helper process of a checkpoint. It freezes the containers, runs CRIU for each, copies what only the kernel or a mount
//! has while nothing can change it, and thaws the containers. It is a separate process so that the containers go on even if
//! the daemon is killed in the middle.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::container_dump::{ContainerDump, OpenedDump};
use super::helper;
use super::shared_dump::SharedDump;

/// The hidden command of berth that runs the helper.
pub const COMMAND: &str = "checkpoint-dump";

/// The task of the helper.
#[derive(Debug, Serialize, Deserialize)]
pub struct DumpOrder {
    /// The program CRIU.
    pub criu: PathBuf,
    /// The containers. All are frozen before the first is dumped.
    pub containers: Vec<ContainerDump>,
    /// The shared state of the containers, if the checkpoint is one of a pod.
    pub shared: Option<SharedDump>,
    /// No container is dumped later than this after the start.
    pub within: Option<Duration>,
}

/// Runs the helper and waits for its end. The helper goes on when the caller gives up.
///
/// # Errors
/// The reason why there is no dump. The containers run.
pub async fn run(order: &DumpOrder) -> Result<(), String> {
    helper::run(COMMAND, order).await
}

/// The helper process.
#[must_use]
pub fn serve() -> ExitCode {
    helper::serve(|order: DumpOrder| dump(&order))
}

/// Dumps the containers at one moment: none of them runs between the first dump and the last.
fn dump(order: &DumpOrder) -> Result<(), String> {
    let late = order.within.map(|within| Instant::now() + within);
    let shared = order.shared.as_ref().map(SharedDump::open).transpose()?;
    let opened = order.containers.iter().map(OpenedDump::open).collect::<Result<Vec<_>, _>>()?;
    // The limits of CRIU are found before anything is changed.
    let check = || match &shared {
        Some(shared) => opened.iter().try_for_each(OpenedDump::check_memory).and_then(|()| shared.check()),
        None => Ok(()),
    };
    check()?;
    // Those that are frozen are thawed when this is dropped, also if one cannot be frozen.
    let _frozen = opened.iter().map(OpenedDump::freeze).collect::<Result<Vec<_>, _>>()?;
    opened.iter().try_for_each(OpenedDump::check_runs)?;
    // It may have changed meanwhile.
    check()?;
    for opened in &opened {
        if late.is_some_and(|late| Instant::now() >= late) {
            return Err("it was not complete in time".to_owned());
        }
        opened.write(&order.criu)?;
    }
    shared.iter().try_for_each(|shared| shared.write())
}
