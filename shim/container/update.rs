//! UpdateContainerResources: changes the limits of a created, running or exited container. Either all changes apply
//! or none (CRI: "This call is transactional").

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use berth_proto::nri::LinuxResources as NriResources;
use berth_proto::v1::{LinuxContainerResources, UpdateContainerResourcesRequest};
use berth_runtime::cgroup::{CgroupError, CgroupPath, Change, OomScores};
use berth_runtime::seccomp::Cache;
use oci_spec::runtime::LinuxResources;
use tracing::Instrument;

use super::adjusted::{beyond_cri, to_cri};
use crate::blocking::blocking;
use crate::cgroups::Cgroups;
use crate::daemon::Daemon;
use crate::error::CriError;
use crate::handlers;
use crate::nri::adaptation::NriError;
use crate::nri::adjust::resources::overlay;
use crate::nri::events::Notice;
use crate::nri_events::NriEvents;
use crate::oci::resources::{applied, change, check, limits};
use crate::oci::{score, validate};
use crate::store::{Container, ContainerRecord, ContainerState, Store};
use crate::undo::UndoStack;

/// The parts of the daemon that an update of limits uses.
#[derive(Clone, Debug)]
pub struct LimitParts {
    /// The pods and containers.
    pub store: Arc<Store>,
    /// Their cgroups.
    pub cgroups: Cgroups,
    /// Compiled seccomp profiles.
    pub filters: Arc<Cache>,
    /// The lowest oom_score_adj: lower ones are raised to it.
    pub oom_score_adj_floor: Option<i32>,
    /// The NRI plugins.
    pub nri: Arc<NriEvents>,
}

impl LimitParts {
    /// Returns the parts of a daemon.
    #[must_use]
    pub fn of(daemon: &Daemon) -> Self {
        Self {
            store: daemon.pods.store.clone(),
            cgroups: daemon.cgroups.clone(),
            filters: daemon.filters.clone(),
            oom_score_adj_floor: daemon.host.oom_score_adj_floor(daemon.config.restrict_oom_score_adj),
            nri: daemon.pods.nri.clone(),
        }
    }
}

/// Changes limits. 0 and empty leave a limit unchanged. A new oom_score_adj applies to every process of the container.
///
/// # Errors
/// `NotFound`; `InvalidArgument` for an invalid value; the limit that the kernel refuses or that has no controller.
/// All limits are unchanged then.
pub async fn update_container_resources(
    parts: LimitParts,
    request: UpdateContainerResourcesRequest,
) -> Result<(), CriError> {
    let container = parts.store.container(&request.container_id)?;
    let span = tracing::Span::current();
    span.record("container", container.id.as_str());
    span.record("pod", container.pod.as_str());
    if request.windows.is_some() {
        return Err(CriError::invalid("windows", "is not supported on Linux"));
    }
    validate::annotations(&request.annotations)?;
    // A separate task: a caller that disconnects does not interrupt the update.
    let task = async move { with_plugins(parts, container, request.linux, request.annotations).await };
    let done = tokio::spawn(task.in_current_span()).await;
    done.map_err(|panic| CriError::internal("update a container", panic))?
}

/// Updates a container with the changes of NRI plugins. A plugin may update the container while it is called, so the calls
/// are outside of the container's turn.
async fn with_plugins(
    parts: LimitParts,
    container: Arc<Container>,
    requested: Option<LinuxContainerResources>,
    annotations: HashMap<String, String>,
) -> Result<(), CriError> {
    let nri = parts.nri.clone();
    let asked = match &requested {
        Some(requested) => nri.update(&container, requested).await?,
        None => None,
    };
    let Some((limits, others)) = asked else {
        return in_turn(parts, container, requested, None, annotations).await;
    };
    let score = requested.map_or(0, |requested| requested.oom_score_adj);
    let requested = LinuxContainerResources { oom_score_adj: score, ..to_cri(&limits) };
    in_turn(parts, container.clone(), Some(requested), Some(beyond_cri(&limits)), annotations).await?;
    nri.plugins().apply_later(others);
    nri.after(Notice::PostUpdate, &container).await;
    Ok(())
}

/// Changes limits for an NRI plugin.
///
/// # Errors
/// As [`update_container_resources`].
pub(super) async fn update_by_plugin(
    parts: LimitParts,
    id: &str,
    limits: NriResources,
) -> Result<(), CriError> {
    let container = parts.store.container(id)?;
    let requested = Some(to_cri(&limits));
    in_turn(parts, container, requested, Some(beyond_cri(&limits)), HashMap::new()).await
}

async fn in_turn(
    parts: LimitParts,
    container: Arc<Container>,
    requested: Option<LinuxContainerResources>,
    more: Option<NriResources>,
    annotations: HashMap<String, String>,
) -> Result<(), CriError> {
    let _turn = container.turn.clone().write_owned().await;
    parts.store.container(container.id.as_str())?;
    Update::new(parts, container, requested, more.as_ref(), annotations)?.run().await
}

struct Update {
    parts: LimitParts,
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
        parts: LimitParts,
        container: Arc<Container>,
        requested: Option<LinuxContainerResources>,
        more: Option<&NriResources>,
        annotations: HashMap<String, String>,
    ) -> Result<Self, CriError> {
        let change =
            requested.map(|requested| Limits::new(&parts, &container, &requested, more)).transpose()?;
        let annotations = annotations.into_iter().collect();
        Ok(Self { parts, container, change, annotations, undo: UndoStack::default() })
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
        if !self.update_cgroup(limits.clone()).await? {
            return Ok(());
        }
        if let Some(runtime) = self.container.runtime() {
            handlers::calls::update(&runtime, &self.container.id, &limits.after).await?;
        }
        if !self.parts.cgroups.has_scopes() {
            return Ok(());
        }
        let path = self.container.with(|record| CgroupPath::from_recorded(&record.cgroup))?;
        let (cgroups, scope, limits_for_undo) = (self.parts.cgroups.clone(), path.clone(), limits.clone());
        self.undo.push("restore the scope's limits", async move {
            let Limits { before, after, .. } = &limits_for_undo;
            let restored = cgroups.restore_scope_limits(&scope, before, after).await;
            restored.map_err(|error| error.to_string())
        });
        self.parts.cgroups.set_scope_limits(&path, &limits.after).await?;
        // systemd has written the limits to the cgroup, with quotas rounded to whole percents.
        self.update_cgroup(limits.clone()).await.map(drop)
    }

    /// Sets the limits in the cgroup; the former values go to the undo stack. Returns false if the cgroup does not
    /// exist, since the container has just ended.
    async fn update_cgroup(&mut self, limits: Limits) -> Result<bool, CriError> {
        let (cgroups, container) = (self.parts.cgroups.clone(), self.container.clone());
        let set = blocking(move || set_cgroup(&cgroups, &container, &limits)).await?;
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
        let (filters, container, limits) =
            (self.parts.filters.clone(), self.container.clone(), limits.clone());
        let former =
            blocking(move || container.spec.change_limits(limits.after, limits.oom_score_adj, &filters))
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
        parts: &LimitParts,
        container: &Container,
        requested: &LinuxContainerResources,
        more: Option<&NriResources>,
    ) -> Result<Self, CriError> {
        let v2 = parts.cgroups.is_v2();
        let before = container.with(ContainerRecord::limits);
        let mut after = before.clone();
        change(&mut after, requested);
        check(&after, v2)?;
        let oom_score_adj = score(after.oom_score_adj, parts.oom_score_adj_floor);
        let mut new_limits = limits(&after, v2);
        more.map_or(Ok(()), |more| overlay(&mut new_limits, more, v2)).map_err(NriError::Apply)?;
        Ok(Self {
            before: limits(&before, v2),
            after: new_limits,
            reported: applied(&after, oom_score_adj),
            oom_score_adj,
            with_score: requested.oom_score_adj != 0,
        })
    }
}

fn set_cgroup(
    cgroups: &Cgroups,
    container: &Container,
    limits: &Limits,
) -> Result<Option<(Change, OomScores)>, CriError> {
    let cgroup = cgroups.recorded(&container.with(|record| record.cgroup.clone()))?;
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
