//! The last lines of logs: of containers, and of the pod's keeper.

use std::path::PathBuf;

use berth_proto::admin::DescribePodResponse;

use super::PageOptions;
use crate::cli::diag::files;
use crate::cli::diag::members::ContainerFacts;
use crate::cli::diag::page::{KeeperSummary, Log};
use crate::cli::diag::section::{Gathering, PATIENCE, Section, gather};
use crate::cli::logs::tail;

/// A log that is being read.
pub(super) struct PendingLog {
    container: String,
    path: String,
    lines: Gathering<Vec<String>>,
}

impl PendingLog {
    pub(super) fn wait(self) -> Log {
        Log { container: self.container, path: self.path, lines: self.lines.wait() }
    }
}

pub(super) fn log(container: &ContainerFacts, options: PageOptions) -> Option<PendingLog> {
    let path = container.status.log_path.clone();
    let file = PathBuf::from(&path);
    let lines = gather(PATIENCE, move || match options.logs {
        true => tail::last_lines(&file, options.lines)
            .map_err(|error| format!("failed to read {}: {error}", file.display())),
        false => Err("logs of containers are left out".to_owned()),
    });
    (!path.is_empty()).then(|| PendingLog { container: container.name(), path, lines })
}

pub(super) fn keeper(
    description: &Result<DescribePodResponse, String>,
    options: PageOptions,
) -> Section<KeeperSummary> {
    let seen = match description {
        Ok(seen) => seen,
        Err(reason) => return Section::Unknown { reason: reason.clone() },
    };
    let path = seen.keeper_log.clone();
    let lines = gather(PATIENCE, move || files::last_lines(&path, options.lines));
    Section::Known(KeeperSummary { pid: seen.keeper_pid, log: seen.keeper_log.clone(), lines: lines.wait() })
}
