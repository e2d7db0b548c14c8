//! A further process in a running container. It has a separate cgroup below the container's, or beside it if
//! the container is frozen, so everything that it starts can be killed with it.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use berth_runtime::cgroup::Cgroup;
use berth_runtime::compile::{FdList, compile_process, compile_users};
use berth_runtime::plan::{ExecPlan, RuntimeExec};
use berth_runtime::wire::{Call, Failure};
use oci_spec::runtime::{BoxBuilder, Process};
use tokio::sync::oneshot;
use tracing::Instrument;

use super::access::{ContainerAccess, keeper_of};
use crate::blocking::blocking;
use crate::descriptors;
use crate::error::CriError;
use crate::handlers::features;
use crate::keeper::{KeeperClient, KeeperError};
use crate::oci::exec_process;
use crate::store::Container;
use crate::store::spec::CachedSpec;

static NEXT_NUMBER: AtomicU64 = AtomicU64::new(0);

/// A random number that makes exec ids unique across daemons: an earlier daemon may have had the same pid.
fn daemon_number() -> u64 {
    static NUMBER: OnceLock<u64> = OnceLock::new();
    *NUMBER.get_or_init(rand::random)
}

/// How many leftover cgroups of earlier execs are checked after each exec.
const LEFTOVERS_PER_EXEC: usize = 4;

/// The command's ends of its standard streams. An absent one is /dev/null. With a terminal all are absent:
/// the terminal is created inside the container.
#[derive(Debug, Default)]
pub(super) struct Stdio {
    pub(super) stdin: Option<OwnedFd>,
    pub(super) stdout: Option<OwnedFd>,
    pub(super) stderr: Option<OwnedFd>,
    pub(super) tty: bool,
    /// Columns and rows of the terminal, if known.
    pub(super) size: Option<(u16, u16)>,
}

/// A running process. If it is dropped before its end, it is killed with everything that it started.
#[derive(Debug)]
pub(super) struct ExecProcess {
    handle: Option<ExecHandle>,
    exit: ExitState,
}

#[derive(Debug)]
enum ExitState {
    Pending(oneshot::Receiver<i32>),
    /// The exit code; none if the keeper has ended.
    Reported(Option<i32>),
}

impl ExecProcess {
    /// Starts a command. With a terminal, the terminal's master is returned as well. If the caller drops the
    /// future, the process is killed, even if it was stopped before its exec.
    ///
    /// # Errors
    /// `InvalidArgument` if the command is empty; `FailedPrecondition` if the container does not run; an
    /// error with the reason if the command cannot be run.
    pub(super) async fn start(
        access: &ContainerAccess,
        container: Arc<Container>,
        command: Vec<String>,
        stdio: Stdio,
    ) -> Result<(Self, Option<OwnedFd>), CriError> {
        if command.is_empty() {
            return Err(CriError::invalid("cmd", "is empty"));
        }
        let permit = descriptors::reserve("exec")?;
        let handle = ExecHandle::new(access, container)?;
        // Dropped together with the caller's future.
        let (_alive, caller_gone) = oneshot::channel::<()>();
        let starting = async move {
            let _permit = permit;
            let ended = handle.link.exec_end(&handle.id);
            let started = handle.wait_and_start(command, stdio, caller_gone).await;
            match started {
                Ok(master) => Ok((Self { handle: Some(handle), exit: ExitState::Pending(ended) }, master)),
                Err(error) => {
                    handle.link.forget_exec(&handle.id);
                    handle.detach().await;
                    Err(error)
                }
            }
        };
        let task = tokio::spawn(starting.in_current_span());
        task.await.map_err(|panic| CriError::internal("exec", panic))?
    }

    /// Waits for the process to end and returns its exit code; none if the keeper has ended. Later calls
    /// return the same.
    pub(super) async fn ended(&mut self) -> Option<i32> {
        if let ExitState::Pending(ended) = &mut self.exit {
            self.exit = ExitState::Reported(ended.await.ok());
        }
        match self.exit {
            ExitState::Reported(code) => code,
            ExitState::Pending(_) => None,
        }
    }

    /// Kills the process with everything that it started, and waits for that.
    pub(super) async fn kill(mut self) {
        if let Some(handle) = self.handle.take() {
            handle.kill().await;
        }
    }

    /// Lets the processes that the command left behind run on in the container.
    pub(super) async fn detach(mut self) {
        if let Some(handle) = self.handle.take() {
            handle.detach().await;
        }
    }
}

impl Drop for ExecProcess {
    fn drop(&mut self) {
        let Some(handle) = self.handle.take() else { return };
        // An exit that was not seen yet may be caused by this drop: closing a terminal sends SIGHUP, which
        // processes in other sessions do not receive. Kill them, too.
        let ended = matches!(self.exit, ExitState::Reported(Some(_)));
        // Without a runtime the daemon is exiting; the next daemon kills its execs.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let span = tracing::Span::current();
        runtime.spawn(
            async move {
                match ended {
                    true => handle.detach().await,
                    false => handle.kill().await,
                }
            }
            .instrument(span),
        );
    }
}

/// Returns the part of an exec that the container's OCI runtime reads.
fn runtime_exec(
    mut process: Process,
    size: Option<(u16, u16)>,
    cgroup: Option<String>,
) -> Result<RuntimeExec, CriError> {
    if let Some((width, height)) = size {
        let size = BoxBuilder::default().width(u64::from(width)).height(u64::from(height)).build();
        process.set_console_size(size.ok());
    }
    let process =
        serde_json::to_string(&process).map_err(|error| CriError::internal("encode a process", error))?;
    Ok(RuntimeExec { process, cgroup })
}

/// The process's container, keeper and id.
#[derive(Debug)]
struct ExecHandle {
    access: ContainerAccess,
    container: Arc<Container>,
    link: KeeperClient,
    id: String,
}

impl ExecHandle {
    fn new(access: &ContainerAccess, container: Arc<Container>) -> Result<Self, CriError> {
        let link = keeper_of(&access.store, &container)?;
        let number = NEXT_NUMBER.fetch_add(1, Ordering::Relaxed);
        let id = format!("{}{:016x}-{number}", Cgroup::EXEC, daemon_number());
        Ok(Self { access: access.clone(), container, link, id })
    }

    /// Waits for other operations on the container, but not for other execs, and starts the command.
    async fn wait_and_start(
        &self,
        command: Vec<String>,
        stdio: Stdio,
        mut caller_gone: oneshot::Receiver<()>,
    ) -> Result<Option<OwnedFd>, CriError> {
        let _turn = tokio::select! {
            turn = self.container.turn.read() => turn,
            _caller_gone = &mut caller_gone => return Err(self.caller_gone()),
        };
        let (plan, descriptors) = self.prepare(command, stdio).await?;
        self.start(plan, descriptors, caller_gone).await
    }

    /// The error of a start without a caller. It reaches no client.
    fn caller_gone(&self) -> CriError {
        CriError::deadline(format!("exec in container {}: its caller has gone", self.container.id))
    }

    async fn prepare(
        &self,
        command: Vec<String>,
        stdio: Stdio,
    ) -> Result<(ExecPlan, Vec<OwnedFd>), CriError> {
        let (access, container, id) = (self.access.clone(), self.container.clone(), self.id.clone());
        blocking(move || -> Result<_, CriError> {
            let CachedSpec { spec, filter } = container.spec.cached(&access.filters)?;
            let requested = exec_process(&spec, &command, stdio.tty)?;
            let mut process = compile_process(&requested)?;
            let runtime = container.runtime().map(|runtime| {
                let cgroup = features::of_program(&runtime.program).exec_cgroup;
                runtime_exec(requested, stdio.size, cgroup.value(&id, access.cgroups.is_v2()))
            });
            let runtime = runtime.transpose()?;
            process.terminal_size = stdio.size.or(process.terminal_size);
            let userns = compile_users(&spec);
            let cgroup = access.cgroup_of(&container)?;
            let cgroup = match cgroup.is_frozen() {
                true => {
                    let limits = spec.linux().as_ref().and_then(|linux| linux.resources().clone());
                    cgroup.sibling(&id, &limits.unwrap_or_default())?
                }
                false => cgroup.child(&id)?,
            };
            let mut descriptors = FdList::default();
            let cgroup = descriptors.push_cgroup(cgroup.join()?);
            let stdin = stdio.stdin.map(|end| descriptors.push(end));
            let stdout = stdio.stdout.map(|end| descriptors.push(end));
            let stderr = stdio.stderr.map(|end| descriptors.push(end));
            // An OCI runtime loads the filter of its container.
            let filter = filter.filter(|_| runtime.is_none());
            process.seccomp = filter.map(|filter| descriptors.push_filter(&filter)).transpose()?;
            let plan = ExecPlan { process, cgroup, userns, stdin, stdout, stderr, tty: stdio.tty, runtime };
            Ok((plan, descriptors.into_owned()))
        })
        .await
    }

    async fn start(
        &self,
        plan: ExecPlan,
        descriptors: Vec<OwnedFd>,
        caller_gone: oneshot::Receiver<()>,
    ) -> Result<Option<OwnedFd>, CriError> {
        let command = plan.process.args.first().cloned().unwrap_or_default();
        let container = self.container.id.as_str().to_owned();
        let call = Call::Exec { container, exec: self.id.clone(), plan: Box::new(plan) };
        let answer = self.link.call(call, descriptors);
        tokio::pin!(answer);
        let answer = tokio::select! {
            answer = &mut answer => answer,
            _caller_gone = caller_gone => match self.kill_unstarted().await {
                true => answer.await,
                // The keeper does not answer the first call either. Stop waiting and close its descriptors.
                false => return Err(self.caller_gone()),
            },
        };
        match answer {
            // The master follows the process's pidfd.
            Ok((_started, descriptors)) => Ok(descriptors.into_iter().nth(1)),
            Err(KeeperError::Failure(Failure::Init(failure))) => Err(CriError::failed(
                format!("exec in container {}", self.container.id),
                format!("{failure}: {command:?}"),
            )),
            // The process may run, or may start when a stopped keeper continues. Kill it: it has no caller.
            Err(
                error @ (KeeperError::NoAnswer { .. }
                | KeeperError::Broken { .. }
                | KeeperError::NoDescriptors),
            ) => {
                let _answers = self.kill_unstarted().await;
                Err(error.into())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Kills a process that may not have reached its exec yet: another process can stop it there. The keeper
    /// handles this call after the one that starts the process. If only a clone of the process is in the
    /// cgroup, killing the cgroup catches it. Returns whether the keeper answered. A keeper that continues
    /// later cannot start the process, because the cgroup is removed.
    async fn kill_unstarted(&self) -> bool {
        const SIGKILL: i32 = 9;
        let killed = self.link.execute(Call::SignalExec { exec: self.id.clone(), signal: SIGKILL }).await;
        self.kill().await;
        // A process that has already ended is unknown to the keeper, which is a [`Failure`].
        matches!(killed, Ok(()) | Err(KeeperError::Failure(_)))
    }

    async fn kill(&self) {
        self.link.forget_exec(&self.id);
        self.with_cgroup("kill the processes of an exec", |cgroup, id| {
            for cgroup in [cgroup.existing_sibling(id), cgroup.existing_child(id)] {
                cgroup.kill()?;
                cgroup.remove_if_empty()?;
            }
            Ok(Vec::new())
        })
        .await;
    }

    /// Removes the cgroups of this exec and of a few earlier ones, if they are empty. The others stay until a
    /// later exec finds them empty or the container is removed.
    async fn detach(&self) {
        let earlier = self.container.take_leftover_execs(LEFTOVERS_PER_EXEC);
        self.with_cgroup("remove the cgroup of an exec", move |cgroup, id| {
            let mut left = Vec::new();
            for id in earlier.iter().map(String::as_str).chain([id]) {
                let gone = cgroup.existing_sibling(id).remove_if_empty()?;
                if !(gone && cgroup.existing_child(id).remove_if_empty()?) {
                    left.push(id.to_owned());
                }
            }
            Ok(left)
        })
        .await;
    }

    async fn with_cgroup<W>(&self, action: &'static str, work: W)
    where
        W: FnOnce(&Cgroup, &str) -> Result<Vec<String>, CriError> + Send + 'static,
    {
        let (access, container, id) = (self.access.clone(), self.container.clone(), self.id.clone());
        let done = blocking(move || -> Result<(), CriError> {
            let left = work(&access.cgroup_of(&container)?, &id)?;
            container.put_leftover_execs(left);
            Ok(())
        })
        .await;
        if let Err(error) = done {
            tracing::warn!(exec = self.id, %error, "failed to {action}; it stays until the container is removed");
        }
    }
}
