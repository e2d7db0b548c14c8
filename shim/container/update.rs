//! UpdateContainerResources: changes the limits of a created, running or exited container. Either all changes apply
//! or none (CRI: "This call is transactional").

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use berth_proto::v1::{LinuxContainerResources, UpdateContainerResourcesRequest};
use berth_runtime::cgroup::{Cgroup, CgroupError, CgroupPath, Change, OomScores};
use oci_spec::runtime::LinuxResources;
use tracing::Instrument;

use crate::blocking::blocking;
use crate::daemon::{Daemon, Shared};
use crate::error::CriError;
use crate::oci::resources::{applied, change, check, limits};
use crate::oci::{score, validate};
use crate::store::{Container, ContainerRecord, ContainerState};
use crate::undo::UndoStack;

/// Changes limits. 0 and empty leave a limit unchanged. A new oom_score_adj applies to every process of the container.
///
/// # Errors
/// `NotFound`; `InvalidArgument` for an invalid value; the limit that the kernel refuses or that has no controller.
/// All limits are unchanged then.
pub async fn update_container_resources(
    daemon: &Shared,
    request: UpdateContainerResourcesRequest,
) -> Result<(), CriError> {
    let container = daemon.store.container(&request.container_id)?;
    let span = tracing::Span::current();
    span.record("container", container.id.as_str());
    span.record("pod", container.pod.as_str());
    if request.windows.is_some() {
        return Err(CriError::invalid("windows", "is not supported on Linux"));
    }
    validate::annotations(&request.annotations)?;
    let daemon = daemon.clone();
    // A separate task: a caller that disconnects does not interrupt the update.
    let task = async move {
        let _turn = container.turn.clone().write_owned().await;
        daemon.store.container(container.id.as_str())?;
        Update::new(daemon, container, request.linux, request.annotations)?.run().await
    };
    let done = tokio::spawn(task.in_current_span()).await;
    done.map_err(|panic| CriError::internal("update a container", panic))?
}

struct Update {
    daemon: Shared,
    container: Arc<Container>,
    /// None if the request has no limits.
    change: Option<Limits>,
    annotations: BTreeMap<String, String>,
    undo: UndoStack,
}

/// The limits before and after the update. Limits that the request omits are set again with the others, since some,
/// such as a quota and its period, are one value in the kernel.
#[derive(Clone)]
struct Limits {
    before: LinuxResources,
    after: LinuxResources,
    /// The limits that the status reports.
    reported: LinuxContainerResources,
    oom_score_adj: i32,
    /// Whether the request sets oom_score_adj.
    with_score: bool,
}

impl Update {
    fn new(
        daemon: Shared,
        container: Arc<Container>,
        requested: Option<LinuxContainerResources>,
        annotations: HashMap<String, String>,
    ) -> Result<Self, CriError> {
        let change = requested.map(|requested| Limits::new(&daemon, &container, &requested)).transpose()?;
        let annotations = annotations.into_iter().collect();
        Ok(Self { daemon, container, change, annotations, undo: UndoStack::default() })
    }

    async fn run(mut self) -> Result<(), CriError> {
        if !self.annotations.is_empty() {
            let keys: Vec<&String> = self.annotations.keys().collect();
            tracing::warn!(?keys, "annotations of an update are recorded and have no other effect");
        }
        match self.run_steps().await {
            Ok(()) => Ok(()),
            Err(error) => match self.undo.run().await {
                Ok(()) => Err(error),
                Err(undo_errors) => Err(error.with_undo_errors(&undo_errors)),
            },
        }
    }

    async fn run_steps(&mut self) -> Result<(), CriError> {
        if let Some(limits) = self.change.clone() {
            // An exited container has no cgroup; its status reports the new limits anyway.
            if !matches!(self.container.state(), ContainerState::Exited(_)) {
                self.apply_limits(&limits).await?;
            }
            self.update_spec(&limits).await?;
        }
        let (container, annotations) = (self.container.clone(), self.annotations.clone());
        let reported = self.change.as_ref().map(|limits| limits.reported.clone());
        blocking(move || {
            container.intend(|record| {
                record.update_annotations.extend(annotations.clone());
                if let Some(reported) = &reported {
                    record.resources = Some(reported.clone());
                }
            })
        })
        .await
    }

    async fn apply_limits(&mut self, limits: &Limits) -> Result<(), CriError> {
        if !self.update_cgroup(limits.clone()).await? || !self.daemon.uses_systemd() {
            return Ok(());
        }
        let path = self.container.with(|record| CgroupPath::from_recorded(&record.cgroup))?;
        let (daemon, scope, limits_for_undo) = (self.daemon.clone(), path.clone(), limits.clone());
        self.undo.push("restore the scope's limits", async move {
            let Limits { before, after, .. } = &limits_for_undo;
            let restored =
                daemon.systemd.restore_limits(daemon.hierarchies.version(), &scope, before, after).await;
            restored.map_err(|error| error.to_string())
        });
        self.daemon.systemd.set_limits(self.daemon.hierarchies.version(), &path, &limits.after).await?;
        // systemd has written the limits to the cgroup, with quotas rounded to whole percents.
        self.update_cgroup(limits.clone()).await.map(drop)
    }

    /// Sets the limits in the cgroup; the former values go to the undo stack. Returns false if the cgroup does not
    /// exist, since the container has just ended.
    async fn update_cgroup(&mut self, limits: Limits) -> Result<bool, CriError> {
        let (daemon, container) = (self.daemon.clone(), self.container.clone());
        let set = blocking(move || set_cgroup(&daemon, &container, &limits)).await?;
        let Some((change, scores)) = set else { return Ok(false) };
        self.undo.push("restore the limits", async move {
            let restore = move || {
                let errors: Vec<String> = scores.undo().into_iter().chain(change.undo()).collect();
                if errors.is_empty() {
                    Ok(())
                } else {
                    Err(CriError::internal("restore limits", errors.join("; ")))
                }
            };
            blocking(restore).await.map_err(|error| error.to_string())
        });
        Ok(true)
    }

    async fn update_spec(&mut self, limits: &Limits) -> Result<(), CriError> {
        let (daemon, container, limits) = (self.daemon.clone(), self.container.clone(), limits.clone());
        let former = blocking(move || {
            container.spec.change_limits(limits.after, limits.oom_score_adj, &daemon.filters)
        })
        .await?;
        let container = self.container.clone();
        self.undo.push("restore the spec", async move {
            blocking(move || container.spec.restore(former)).await.map_err(|error| error.to_string())
        });
        Ok(())
    }
}

impl Limits {
    fn new(
        daemon: &Daemon,
        container: &Container,
        requested: &LinuxContainerResources,
    ) -> Result<Self, CriError> {
        let v2 = daemon.hierarchies.is_v2();
        let before = container.with(ContainerRecord::limits);
        let mut after = before.clone();
        change(&mut after, requested);
        check(&after, v2)?;
        let floor = Some(daemon.oom_score_adj).filter(|_| daemon.config.restrict_oom_score_adj);
        let oom_score_adj = score(after.oom_score_adj, floor);
        Ok(Self {
            before: limits(&before, v2),
            after: limits(&after, v2),
            reported: applied(&after, oom_score_adj),
            oom_score_adj,
            with_score: requested.oom_score_adj != 0,
        })
    }
}

fn set_cgroup(
    daemon: &Daemon,
    container: &Container,
    limits: &Limits,
) -> Result<Option<(Change, OomScores)>, CriError> {
    let path = container.with(|record| CgroupPath::from_recorded(&record.cgroup))?;
    let cgroup = Cgroup::open(&daemon.hierarchies, &path);
    let change = match cgroup.update(&limits.after) {
        Ok(change) => change,
        Err(CgroupError::Gone { .. }) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    if !limits.with_score {
        return Ok(Some((change, OomScores::default())));
    }
    match cgroup.set_oom_score_adj(limits.oom_score_adj) {
        Ok(scores) => Ok(Some((change, scores))),
        Err(error) => Err(CriError::from(error).with_undo_errors(&change.undo())),
    }
}
