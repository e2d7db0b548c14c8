//! ExecSync: a command in a running container, in a cgroup of its own, so that a timeout ends all that it has started.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use berth_proto::v1::ExecSyncResponse;
use berth_runtime::cgroup::{Cgroup, CgroupPath};
use berth_runtime::compile::{FdList, compile_process, compile_users};
use berth_runtime::plan::ExecPlan;
use berth_runtime::wire::{Call, Failure};

use super::output::Output;
use crate::daemon::{Shared, blocking};
use crate::error::CriError;
use crate::keeper::{Link, LinkError};
use crate::spec::exec_process;
use crate::store::spec::Kept;
use crate::store::{Container, ContainerState};

/// How long output is read after the command has ended, when something that it left behind holds the pipe open.
const DRAIN: Duration = Duration::from_secs(1);

static NEXT: AtomicU64 = AtomicU64::new(0);

/// Runs a command and waits for its end; a `timeout` in seconds of 0 is none.
///
/// # Errors
/// `DeadlineExceeded` after the timeout, when everything the command had started is killed; `FailedPrecondition` where
/// the container does not run; the reason why the command cannot be run.
pub async fn exec_sync(
    daemon: &Shared,
    id: &str,
    command: &[String],
    timeout: i64,
) -> Result<ExecSyncResponse, CriError> {
    let container = daemon.store.container(id)?;
    let span = tracing::Span::current();
    span.record("container", container.id.as_str());
    span.record("pod", container.pod.as_str());
    if command.is_empty() {
        return Err(CriError::invalid("cmd", "is empty"));
    }
    let exec = Exec::new(daemon, container)?;
    let timeout = u64::try_from(timeout).ok().filter(|t| *t > 0).map(Duration::from_secs);
    // A task of its own: a caller that goes away does not leave a command without anyone who ends it in time.
    let command = command.to_vec();
    let span = tracing::Span::current();
    let task =
        tokio::spawn(tracing::Instrument::instrument(async move { exec.run(&command, timeout).await }, span));
    task.await.map_err(|panic| CriError::internal("exec", panic))?
}

struct Exec {
    daemon: Shared,
    container: Arc<Container>,
    link: Link,
    id: String,
}

impl Exec {
    fn new(daemon: &Shared, container: Arc<Container>) -> Result<Self, CriError> {
        let ContainerState::Running { .. } = container.state() else {
            return Err(CriError::precondition(format!("container {}", container.id), "it is not running"));
        };
        let link = daemon.store.pod(container.pod.as_str())?.link();
        let link = link.ok_or_else(|| {
            CriError::precondition(format!("pod sandbox {}", container.pod), "its keeper has ended")
        })?;
        // The daemon's pid makes the id unique among those of former daemons.
        let id = format!("exec-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        Ok(Self { daemon: daemon.clone(), container, link, id })
    }

    async fn run(self, command: &[String], timeout: Option<Duration>) -> Result<ExecSyncResponse, CriError> {
        let (mut stdout, stdout_end) =
            Output::new().map_err(|error| CriError::internal("make a pipe", error))?;
        let (mut stderr, stderr_end) =
            Output::new().map_err(|error| CriError::internal("make a pipe", error))?;
        let ended = self.link.exec_end(&self.id);
        let answer = match self.prepare(command, stdout_end, stderr_end).await {
            Ok((plan, descriptors)) => self.start(plan, descriptors).await,
            Err(error) => Err(error),
        };
        if let Err(error) = answer {
            self.link.forget_exec(&self.id);
            self.remove_cgroup().await;
            return Err(error);
        }
        let waiting = async {
            let reading = async { tokio::join!(stdout.read_to_end(), stderr.read_to_end()) };
            tokio::pin!(reading);
            tokio::pin!(ended);
            tokio::select! {
                _read = &mut reading => ended.await,
                code = &mut ended => {
                    // What holds the pipe open now is not the command: its output is not waited for long.
                    drop(tokio::time::timeout(DRAIN, reading).await);
                    code
                }
            }
        };
        let code = match timeout {
            Some(limit) => tokio::time::timeout(limit, waiting).await,
            None => Ok(waiting.await),
        };
        let result = match code {
            Ok(Ok(code)) => Ok(ExecSyncResponse {
                stdout: stdout.into_kept(),
                stderr: stderr.into_kept(),
                exit_code: code,
            }),
            Ok(Err(_gone)) => Err(LinkError::Gone.into()),
            Err(_elapsed) => {
                self.kill().await;
                let seconds = timeout.unwrap_or_default().as_secs();
                Err(CriError::deadline(format!("exec in container {} after {seconds} s", self.container.id)))
            }
        };
        self.remove_cgroup().await;
        result
    }

    async fn prepare(
        &self,
        command: &[String],
        stdout: OwnedFd,
        stderr: OwnedFd,
    ) -> Result<(ExecPlan, Vec<OwnedFd>), CriError> {
        let (daemon, container) = (self.daemon.clone(), self.container.clone());
        let (id, command) = (self.id.clone(), command.to_vec());
        blocking(move || -> Result<_, CriError> {
            let Kept { spec, filter } = container.spec.kept(&daemon.filters)?;
            let mut process = compile_process(&exec_process(&spec, &command, false)?)?;
            let userns = compile_users(&spec);
            let cgroup = container_cgroup(&daemon, &container)?;
            let cgroup = match cgroup.is_frozen() {
                true => {
                    let limits = spec.linux().as_ref().and_then(|linux| linux.resources().clone());
                    cgroup.beside(&id, &limits.unwrap_or_default())?
                }
                false => cgroup.child(&id)?,
            };
            let mut descriptors = FdList::default();
            let cgroup = descriptors.push_cgroup(cgroup.join()?);
            let stdout = Some(descriptors.push(stdout));
            let stderr = Some(descriptors.push(stderr));
            process.seccomp = filter.map(|filter| descriptors.push_filter(&filter)).transpose()?;
            let plan = ExecPlan { process, cgroup, userns, stdin: None, stdout, stderr, tty: false };
            Ok((plan, descriptors.into_owned()))
        })
        .await
    }

    async fn start(&self, plan: ExecPlan, descriptors: Vec<OwnedFd>) -> Result<(), CriError> {
        let command = plan.process.args.first().cloned().unwrap_or_default();
        let container = self.container.id.as_str().to_owned();
        let call = Call::Exec { container, exec: self.id.clone(), plan: Box::new(plan) };
        match self.link.call(call, descriptors).await {
            Ok(_started) => Ok(()),
            Err(LinkError::Failure(Failure::Init(failure))) => Err(CriError::failed(
                format!("exec in container {}", self.container.id),
                format!("{failure}: {command:?}"),
            )),
            Err(error) => Err(error.into()),
        }
    }

    async fn kill(&self) {
        self.link.forget_exec(&self.id);
        let (daemon, container, id) = (self.daemon.clone(), self.container.clone(), self.id.clone());
        let killed = blocking(move || -> Result<(), CriError> {
            let cgroup = container_cgroup(&daemon, &container)?;
            cgroup.existing_beside(&id).kill()?;
            Ok(cgroup.existing_child(&id).kill()?)
        })
        .await;
        if let Err(error) = killed {
            tracing::warn!(exec = self.id, %error, "kill an exec that took too long");
        }
    }

    /// What the command left running keeps the cgroup until the container is removed.
    async fn remove_cgroup(&self) {
        let (daemon, container, id) = (self.daemon.clone(), self.container.clone(), self.id.clone());
        let removed = blocking(move || -> Result<(), CriError> {
            let cgroup = container_cgroup(&daemon, &container)?;
            cgroup.existing_beside(&id).remove_if_empty()?;
            Ok(cgroup.existing_child(&id).remove_if_empty()?)
        })
        .await;
        if let Err(error) = removed {
            tracing::debug!(exec = self.id, %error, "an exec's cgroup stays until the container is removed");
        }
    }
}

fn container_cgroup(daemon: &Shared, container: &Container) -> Result<Cgroup, CriError> {
    let path = CgroupPath::from_recorded(&container.with(|record| record.cgroup.clone()))?;
    Ok(Cgroup::open(&daemon.hierarchies, &path))
}
