//! Checks that the demo leaves nothing: the objects that its daemon can have created ([`crate::inventory`]), the processes
//! that it has started, and its bridge.

use std::path::Path;
use std::time::{Duration, Instant};

use berth_runtime::cgroup::{CgroupPath, tree};
use nix::errno::Errno;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

use super::DemoError;
use super::daemon::PrivateDaemon;
use super::print::Printer;
use crate::inventory::network::interfaces;
use crate::inventory::{InventoryError, Scope, files, objects, processes};

/// The time limit for the kernel to clean up a namespace after its last process.
const PATIENCE: Duration = Duration::from_secs(30);

/// The interval of comparisons.
const INTERVAL: Duration = Duration::from_millis(20);

impl From<InventoryError> for DemoError {
    fn from(error: InventoryError) -> Self {
        Self::Host(error.to_string())
    }
}

/// Waits until nothing is left.
///
/// # Errors
/// The objects that are left at the time limit.
pub async fn prove_nothing_left(daemon: &PrivateDaemon, printer: &Printer) -> Result<(), DemoError> {
    let start = Instant::now();
    loop {
        let left = left(daemon).await?;
        if left.is_empty() {
            printer.absent("no process, mount, interface, cgroup or file")?;
            return Ok(());
        }
        if start.elapsed() > PATIENCE {
            return Err(DemoError::Left(left.join(", ")));
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

async fn left(daemon: &PrivateDaemon) -> Result<Vec<String>, DemoError> {
    let scope = Scope::of(daemon.config());
    let mut left: Vec<String> =
        living_children()?.into_iter().map(|child| format!("process {child}")).collect();
    left.extend(objects(&scope).await?.iter().map(ToString::to_string));
    left.extend(files::entries(&scope)?.iter().map(|path| format!("file {}", path.display())));
    left.extend(images(&scope)?);
    let bridge = &daemon.config().network.bridge;
    if interfaces().map_err(DemoError::file("read", Path::new("/proc/self/net/dev")))?.contains(bridge) {
        left.push(format!("interface {bridge}"));
    }
    let parent = CgroupPath::from_recorded(daemon.cgroup_parent())
        .map_err(|error| DemoError::Host(error.to_string()))?;
    let cgroups = tree::folders(&parent);
    let cgroups = cgroups.map_err(|error| DemoError::Host(format!("failed to list cgroups: {error}")))?;
    left.extend(cgroups.iter().map(|path| format!("cgroup {}", path.display())));
    Ok(left)
}

/// Returns the images and layers that are left: the demo removes its image. The trash, which the daemon had no time to delete,
/// is removed with the demo's folder.
fn images(scope: &Scope) -> Result<Vec<String>, DemoError> {
    let mut left = Vec::new();
    for name in ["images", "layers"] {
        let folder = scope.config.root.join("image").join(name);
        let names = crate::store::file::names_in(&folder).map_err(InventoryError::from)?;
        left.extend(names.iter().map(|name| format!("file {}", folder.join(name).display())));
    }
    Ok(left)
}

/// Returns the living children of this process: those that it started and orphans that it inherited. Reaps ended
/// children first, as an init does.
fn living_children() -> Result<Vec<String>, DemoError> {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => break,
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(DemoError::Host(format!("failed to wait for processes: {error}"))),
        }
    }
    let children = processes::children(std::process::id());
    let children = children.map_err(DemoError::file("read", Path::new("/proc/self/task")))?;
    Ok(children.into_iter().collect())
}
