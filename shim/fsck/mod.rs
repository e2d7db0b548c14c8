//! `berth fsck`: finds objects on the host that belong to no record, and records whose object is gone, and removes them.
//!
//! A pod or container is recorded before anything of it is created, and its record is removed last; ids are never used
//! again. Objects are therefore listed before records are read: an object whose record does not exist then is a leftover,
//! or it is being removed at this moment. A second scan follows one second later, and only findings of both are
//! reported. No lock is needed, and no pod waits.
//!
//! * [`known`]: the pods and containers that have a record, of a running daemon or on disk
//! * [`compare`]: compares objects with records, as pure functions
//! * [`parts`]: the parts of a running daemon
//! * [`scan`]: lists and compares
//! * [`repair`]: removes what was found
//! * [`report`]: findings as text, JSON and messages

pub mod compare;
pub mod known;
pub mod parts;
pub mod repair;
pub mod report;
pub mod scan;

pub use parts::DaemonParts;
pub use report::{Finding, Outcome, Report};

use crate::error::CriError;
use crate::inventory::{InventoryError, Scope};
use crate::store::file::FileError;

/// The reason why a check failed.
#[derive(Debug, thiserror::Error)]
pub enum FsckError {
    /// Objects cannot be listed.
    #[error(transparent)]
    Inventory(#[from] InventoryError),
    /// Records cannot be read.
    #[error(transparent)]
    Records(#[from] FileError),
    /// The image store cannot be read.
    #[error(transparent)]
    Images(#[from] berth_image::Error),
    /// A step did not finish.
    #[error(transparent)]
    Step(#[from] CriError),
}

impl From<FsckError> for CriError {
    fn from(error: FsckError) -> Self {
        match error {
            FsckError::Records(error) => error.into(),
            FsckError::Images(error) => error.into(),
            FsckError::Step(error) => error,
            FsckError::Inventory(error) => Self::internal("check the host", error),
        }
    }
}

/// Checks the host of a running daemon, and removes what is found if `repair` is set.
///
/// # Errors
/// The host or the records cannot be read. Objects that cannot be removed are in the report.
pub async fn run(daemon: &DaemonParts, repair: bool) -> Result<Report, FsckError> {
    let scope = Scope::of(&daemon.config);
    let candidates = scan::certain(&scope, Some(daemon)).await?;
    let mut report = Report::default();
    let sizes = scan::sizes(&candidates).await?;
    for (candidate, bytes) in candidates.into_iter().zip(sizes) {
        let outcome = match repair {
            true => repair::apply(daemon, &candidate).await,
            false => Outcome::Found,
        };
        report.findings.push(Finding::new(&candidate, bytes, outcome));
    }
    Ok(report)
}

/// Checks the host while no daemon runs. Nothing is changed.
///
/// # Errors
/// The host or the records cannot be read.
pub async fn check(scope: &Scope) -> Result<Report, FsckError> {
    let candidates = scan::certain(scope, None).await?;
    let sizes = scan::sizes(&candidates).await?;
    let findings =
        candidates.iter().zip(sizes).map(|(found, bytes)| Finding::new(found, bytes, Outcome::Found));
    Ok(Report { findings: findings.collect() })
}

/// Removes the leftovers that a starting daemon can remove without a risk for running pods: cgroups, pinned network
/// namespaces and temporary files. Recovery removes the rest.
///
/// # Errors
/// The host cannot be read.
pub async fn sweep(daemon: &DaemonParts) -> Result<Report, FsckError> {
    let candidates = scan::safe(&Scope::of(&daemon.config), daemon).await?;
    let mut report = Report::default();
    for candidate in candidates {
        let outcome = repair::apply(daemon, &candidate).await;
        report.findings.push(Finding::new(&candidate, 0, outcome));
    }
    Ok(report)
}
