//! UpdateContainerResources: new limits of a container, whether it is created, running or over. Either all of them hold
//! afterwards or none (CRI: "This call is transactional").

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use berth_proto::v1::{LinuxContainerResources, UpdateContainerResourcesRequest};
use berth_runtime::cgroup::{Cgroup, CgroupError, CgroupPath, Change, OomScores};
use oci_spec::runtime::LinuxResources;
use tracing::Instrument;

use crate::daemon::{Daemon, Shared, blocking};
use crate::error::CriError;
use crate::spec::resources::{applied, change, check, limits};
use crate::spec::{score, validate};
use crate::store::{Container, ContainerRecord, ContainerState};
use crate::systemd;
use crate::undo::UndoStack;

/// Changes limits; 0 and empty leave a limit as it is. The score of an update is given to every process of the container.
///
/// # Errors
/// `NotFound`; `InvalidArgument` for a value that cannot be; the limit that the kernel refuses, or whose controller is not
/// there. All limits are then as before.
pub async fn update(daemon: &Shared, request: UpdateContainerResourcesRequest) -> Result<(), CriError> {
    let container = daemon.store.container(&request.container_id)?;
    let span = tracing::Span::current();
    span.record("container", container.id.as_str());
    span.record("pod", container.pod.as_str());
    if request.windows.is_some() {
        return Err(CriError::invalid("windows", "is not for this host"));
    }
    validate::annotations(&request.annotations)?;
    let daemon = daemon.clone();
    // Not to be broken off by a caller that goes away.
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
    /// None where no limits are spoken of.
    change: Option<Limits>,
    annotations: BTreeMap<String, String>,
    undo: UndoStack,
}

/// The limits before and after. Those that are not spoken of are set again with the others: what two of them say together,
/// such as a quota and its period, is one value to the kernel.
#[derive(Clone)]
struct Limits {
    before: LinuxResources,
    after: LinuxResources,
    /// What the status will tell.
    told: LinuxContainerResources,
    oom_score_adj: i32,
    /// The client speaks of the score.
    with_score: bool,
}

impl Update {
    fn new(
        daemon: Shared,
        container: Arc<Container>,
        asked: Option<LinuxContainerResources>,
        annotations: HashMap<String, String>,
    ) -> Result<Self, CriError> {
        let change = asked.map(|asked| Limits::new(&daemon, &container, &asked)).transpose()?;
        let annotations = annotations.into_iter().collect();
        Ok(Self { daemon, container, change, annotations, undo: UndoStack::default() })
    }

    async fn run(mut self) -> Result<(), CriError> {
        if !self.annotations.is_empty() {
            let keys: Vec<&String> = self.annotations.keys().collect();
            tracing::warn!(?keys, "annotations of an update are recorded and have no other effect");
        }
        match self.steps().await {
            Ok(()) => Ok(()),
            Err(error) => match self.undo.run().await {
                Ok(()) => Err(error),
                Err(more) => Err(error.with_undo_errors(&more)),
            },
        }
    }

    async fn steps(&mut self) -> Result<(), CriError> {
        if let Some(limits) = self.change.clone() {
            // A container that is over has no cgroup; what it would have had is told in its status.
            if !matches!(self.container.state(), ContainerState::Exited(_)) {
                self.set_kernels(&limits).await?;
            }
            self.set_specs(&limits).await?;
        }
        let (container, annotations) = (self.container.clone(), self.annotations.clone());
        let told = self.change.as_ref().map(|limits| limits.told.clone());
        blocking(move || {
            container.intend(|record| {
                record.update_annotations.extend(annotations.clone());
                if let Some(told) = &told {
                    record.resources = Some(told.clone());
                }
            })
        })
        .await
    }

    async fn set_kernels(&mut self, limits: &Limits) -> Result<(), CriError> {
        if !self.set_cgroups(limits.clone()).await? || !self.daemon.by_systemd() {
            return Ok(());
        }
        let path = self.container.with(|record| CgroupPath::from_recorded(&record.cgroup))?;
        let (daemon, scope, back) = (self.daemon.clone(), path.clone(), limits.clone());
        self.undo.push("set the scope's limits back", async move {
            let set = systemd::set_limits_back(&daemon, &scope, &back.before, &back.after).await;
            set.map_err(|error| error.to_string())
        });
        systemd::set_limits(&self.daemon, &path, &limits.after).await?;
        // systemd has written them, its quotas in whole percents.
        self.set_cgroups(limits.clone()).await.map(drop)
    }

    /// Sets what the kernel knows, of which the former values go to the undo stack. False where there is no cgroup any
    /// more, since the container has just ended.
    async fn set_cgroups(&mut self, limits: Limits) -> Result<bool, CriError> {
        let (daemon, container) = (self.daemon.clone(), self.container.clone());
        let set = blocking(move || set_cgroup(&daemon, &container, &limits)).await?;
        let Some((change, scores)) = set else { return Ok(false) };
        self.undo.push("set the limits back", async move {
            let taken_back = move || {
                let errors: Vec<String> = scores.undo().into_iter().chain(change.undo()).collect();
                if errors.is_empty() { Ok(()) } else { Err(CriError::internal("update", errors.join("; "))) }
            };
            blocking(taken_back).await.map_err(|error| error.to_string())
        });
        Ok(true)
    }

    async fn set_specs(&mut self, limits: &Limits) -> Result<(), CriError> {
        let (daemon, container, limits) = (self.daemon.clone(), self.container.clone(), limits.clone());
        let former = blocking(move || {
            container.spec.change_limits(limits.after, limits.oom_score_adj, &daemon.filters)
        })
        .await?;
        let container = self.container.clone();
        self.undo.push("write the former spec", async move {
            blocking(move || container.spec.take_back(former)).await.map_err(|error| error.to_string())
        });
        Ok(())
    }
}

impl Limits {
    fn new(
        daemon: &Daemon,
        container: &Container,
        asked: &LinuxContainerResources,
    ) -> Result<Self, CriError> {
        let v2 = daemon.hierarchies.is_v2();
        let before = container.with(ContainerRecord::limits);
        let mut after = before.clone();
        change(&mut after, asked);
        check(&after, v2)?;
        let floor = Some(daemon.oom_score_adj).filter(|_| daemon.config.restrict_oom_score_adj);
        let oom_score_adj = score(after.oom_score_adj, floor);
        Ok(Self {
            before: limits(&before, v2),
            after: limits(&after, v2),
            told: applied(&after, oom_score_adj),
            oom_score_adj,
            with_score: asked.oom_score_adj != 0,
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
