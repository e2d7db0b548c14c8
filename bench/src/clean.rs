//! Removes everything that the run created. Pods are found by the run's label, because a call that timed out can
//! still have created one.

use std::fs;
use std::io;
use std::time::Duration;

use berth_proto::v1::{
    ImageSpec, ListPodSandboxRequest, PodSandbox, PodSandboxFilter, RemoveImageRequest,
    RemovePodSandboxRequest, StopPodSandboxRequest,
};
use berth_runtime::cgroup::{CgroupPath, tree};
use futures_util::StreamExt;

use crate::bench::{Bench, LABEL};
use crate::client::timed;
use crate::error::BenchError;

/// The maximum number of checks for remaining pods: a call that timed out can create a pod after the first check.
const ROUNDS: u32 = 10;

/// The time between two checks.
const PAUSE: Duration = Duration::from_millis(300);

/// The number of pods that are removed at the same time.
const PARALLEL: usize = 8;

/// Removes pods, cgroups, files, and the image if the run pulled it. Continues after an error and returns all errors.
pub(crate) async fn all(bench: &mut Bench) -> Vec<BenchError> {
    let mut errors = Vec::new();
    if let Err(error) = pods(bench).await {
        errors.push(error);
    }
    if bench.image_is_ours {
        let image = Some(ImageSpec { image: bench.options.image.clone(), ..Default::default() });
        let request = RemoveImageRequest { image };
        if let Err(error) = timed("RemoveImage", bench.client.images.clone().remove_image(request)).await {
            errors.push(error);
        }
    }
    let folder = bench.folder.path();
    if let Err(source) = fs::remove_dir_all(folder) {
        errors.push(BenchError::File { action: "remove", path: folder.to_owned(), source });
    }
    errors.extend(cgroups(&bench.cgroup_parent));
    errors
}

/// Removes all pods of the run until two checks in a row find none.
pub(crate) async fn pods(bench: &Bench) -> Result<(), BenchError> {
    let mut empty = false;
    let mut error = None;
    for _ in 0..ROUNDS {
        let left = list(bench).await?;
        if left.is_empty() && empty {
            return Ok(());
        }
        empty = left.is_empty();
        let removed: Vec<_> = futures_util::stream::iter(left)
            .map(|pod| remove(bench, pod))
            .buffer_unordered(PARALLEL)
            .collect()
            .await;
        error = removed.into_iter().find_map(Result::err).or(error);
        tokio::time::sleep(PAUSE).await;
    }
    let left = list(bench).await?.len();
    match error {
        _ if left == 0 => Ok(()),
        Some(error) => Err(error),
        None => Err(BenchError::Left(format!("{left} pods with the label {LABEL}={}", bench.run))),
    }
}

async fn list(bench: &Bench) -> Result<Vec<PodSandbox>, BenchError> {
    let label_selector = [(LABEL.to_owned(), bench.run.clone())].into();
    let filter = Some(PodSandboxFilter { label_selector, ..Default::default() });
    let request = ListPodSandboxRequest { filter };
    Ok(timed("ListPodSandbox", bench.client.runtime.clone().list_pod_sandbox(request)).await?.answer.items)
}

async fn remove(bench: &Bench, pod: PodSandbox) -> Result<(), BenchError> {
    let mut client = bench.client.runtime.clone();
    let request = StopPodSandboxRequest { pod_sandbox_id: pod.id.clone() };
    timed("StopPodSandbox", client.stop_pod_sandbox(request)).await?;
    let request = RemovePodSandboxRequest { pod_sandbox_id: pod.id };
    timed("RemovePodSandbox", client.remove_pod_sandbox(request)).await?;
    Ok(())
}

/// Removes the run's parent cgroup in every hierarchy, because runtimes leave the parents that they create. systemd
/// removes slices by itself.
fn cgroups(parent: &str) -> Vec<BenchError> {
    if !parent.starts_with('/') {
        return Vec::new();
    }
    let failed = |(path, source)| BenchError::File { action: "remove cgroup", path, source };
    let invalid = |source| vec![failed((parent.into(), source))];
    match CgroupPath::from_recorded(parent).map_err(io::Error::other).and_then(|path| tree::remove(&path)) {
        Ok(left) => left.into_iter().map(failed).collect(),
        Err(error) => invalid(error),
    }
}
