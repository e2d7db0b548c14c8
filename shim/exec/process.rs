//! A further process in a running container, in a cgroup of its own below the container's: whoever gives it up ends all
//! that it has started.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use berth_runtime::cgroup::{Cgroup, CgroupPath};
use berth_runtime::compile::{FdList, compile_process, compile_users};
use berth_runtime::plan::ExecPlan;
use berth_runtime::wire::{Call, Failure};
use tokio::sync::oneshot;
use tracing::Instrument;

use crate::daemon::{Shared, blocking};
use crate::descriptors;
use crate::error::CriError;
use crate::keeper::{Link, LinkError};
use crate::spec::exec_process;
use crate::store::spec::Kept;
use crate::store::{Container, ContainerState};

static NEXT: AtomicU64 = AtomicU64::new(0);

/// A number that makes the ids of this daemon's execs unique among those of former daemons, which may have had its pid.
fn this_daemon() -> u64 {
    static NUMBER: OnceLock<u64> = OnceLock::new();
    *NUMBER.get_or_init(rand::random)
}

/// How many cgroups of earlier execs are looked at after each: of those that had left something running.
const LOOKED_AT: usize = 4;

/// The command's ends of its standard streams; what is absent is /dev/null, and all of them with a terminal, which is
/// made inside the container.
#[derive(Debug, Default)]
pub(super) struct Ends {
    pub(super) stdin: Option<OwnedFd>,
    pub(super) stdout: Option<OwnedFd>,
    pub(super) stderr: Option<OwnedFd>,
    pub(super) tty: bool,
    /// Columns and rows of the terminal, where they are known.
    pub(super) size: Option<(u16, u16)>,
}

/// A process that runs. Dropped before its end, it is killed with everything that it has started.
#[derive(Debug)]
pub(super) struct Process {
    place: Option<Place>,
    end: End,
}

#[derive(Debug)]
enum End {
    Awaited(oneshot::Receiver<i32>),
    /// None where the keeper has gone.
    Known(Option<i32>),
}

impl Process {
    /// Starts a command; with a terminal, its master comes as well. A caller that gives up leaves nothing: what is on its
    /// way is killed, even where it was stopped before its exec.
    ///
    /// # Errors
    /// `InvalidArgument` without a command; `FailedPrecondition` where the container does not run; the reason why the
    /// command cannot be run.
    pub(super) async fn start(
        daemon: &Shared,
        container: Arc<Container>,
        command: Vec<String>,
        ends: Ends,
    ) -> Result<(Self, Option<OwnedFd>), CriError> {
        if command.is_empty() {
            return Err(CriError::invalid("cmd", "is empty"));
        }
        let permit = descriptors::reserve("exec")?;
        let place = Place::new(daemon, container)?;
        // Dropped with the future of the caller.
        let (_wanted, given_up) = oneshot::channel::<()>();
        let starting = async move {
            let _permit = permit;
            let ended = place.link.exec_end(&place.id);
            let started = place.take_turn(command, ends, given_up).await;
            match started {
                Ok(master) => Ok((Self { place: Some(place), end: End::Awaited(ended) }, master)),
                Err(error) => {
                    place.link.forget_exec(&place.id);
                    place.leave().await;
                    Err(error)
                }
            }
        };
        let task = tokio::spawn(starting.in_current_span());
        task.await.map_err(|panic| CriError::internal("exec", panic))?
    }

    /// Waits for its end: the exit code, or none where the keeper has gone. The answer stays the same.
    pub(super) async fn ended(&mut self) -> Option<i32> {
        if let End::Awaited(ended) = &mut self.end {
            self.end = End::Known(ended.await.ok());
        }
        match self.end {
            End::Known(code) => code,
            End::Awaited(_) => None,
        }
    }

    /// Kills everything that it has started, and waits for that.
    pub(super) async fn kill(mut self) {
        if let Some(place) = self.place.take() {
            place.kill().await;
        }
    }

    /// What it has left running goes on in the container.
    pub(super) async fn leave(mut self) {
        if let Some(place) = self.place.take() {
            place.leave().await;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let Some(place) = self.place.take() else { return };
        // An end that nobody has seen may come of this very drop: a terminal that closes hangs up (SIGHUP), which what
        // has a session of its own does not hear.
        let ended = matches!(self.end, End::Known(Some(_)));
        // Without a runtime the daemon is ending; the next one kills what this one has started.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let span = tracing::Span::current();
        runtime.spawn(
            async move {
                match ended {
                    true => place.leave().await,
                    false => place.kill().await,
                }
            }
            .instrument(span),
        );
    }
}

/// Where a process is.
#[derive(Debug)]
struct Place {
    daemon: Shared,
    container: Arc<Container>,
    link: Link,
    id: String,
}

impl Place {
    fn new(daemon: &Shared, container: Arc<Container>) -> Result<Self, CriError> {
        let link = link_of(daemon, &container)?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let id = format!("{}{:016x}-{number}", Cgroup::EXEC, this_daemon());
        Ok(Self { daemon: daemon.clone(), container, link, id })
    }

    /// Waits for what else is done with the container, but not for other execs, and starts the command.
    async fn take_turn(
        &self,
        command: Vec<String>,
        ends: Ends,
        mut given_up: oneshot::Receiver<()>,
    ) -> Result<Option<OwnedFd>, CriError> {
        let _turn = tokio::select! {
            turn = self.container.turn.read() => turn,
            _given_up = &mut given_up => return Err(self.given_up()),
        };
        let (plan, descriptors) = self.prepare(command, ends).await?;
        self.start(plan, descriptors, given_up).await
    }

    /// Nobody hears this.
    fn given_up(&self) -> CriError {
        CriError::deadline(format!("exec in container {}: its caller has gone", self.container.id))
    }

    async fn prepare(&self, command: Vec<String>, ends: Ends) -> Result<(ExecPlan, Vec<OwnedFd>), CriError> {
        let (daemon, container, id) = (self.daemon.clone(), self.container.clone(), self.id.clone());
        blocking(move || -> Result<_, CriError> {
            let Kept { spec, filter } = container.spec.kept(&daemon.filters)?;
            let mut process = compile_process(&exec_process(&spec, &command, ends.tty)?)?;
            process.terminal_size = ends.size.or(process.terminal_size);
            let userns = compile_users(&spec);
            let cgroup = container_cgroup(&daemon, &container)?;
            let cgroup = match cgroup.is_frozen() {
                true => {
                    let limits = spec.linux().as_ref().and_then(|linux| linux.resources().clone());
                    cgroup.sibling(&id, &limits.unwrap_or_default())?
                }
                false => cgroup.child(&id)?,
            };
            let mut descriptors = FdList::default();
            let cgroup = descriptors.push_cgroup(cgroup.join()?);
            let stdin = ends.stdin.map(|end| descriptors.push(end));
            let stdout = ends.stdout.map(|end| descriptors.push(end));
            let stderr = ends.stderr.map(|end| descriptors.push(end));
            process.seccomp = filter.map(|filter| descriptors.push_filter(&filter)).transpose()?;
            let plan = ExecPlan { process, cgroup, userns, stdin, stdout, stderr, tty: ends.tty };
            Ok((plan, descriptors.into_owned()))
        })
        .await
    }

    async fn start(
        &self,
        plan: ExecPlan,
        descriptors: Vec<OwnedFd>,
        given_up: oneshot::Receiver<()>,
    ) -> Result<Option<OwnedFd>, CriError> {
        let command = plan.process.args.first().cloned().unwrap_or_default();
        let container = self.container.id.as_str().to_owned();
        let call = Call::Exec { container, exec: self.id.clone(), plan: Box::new(plan) };
        let answer = self.link.call(call, descriptors);
        tokio::pin!(answer);
        let answer = tokio::select! {
            answer = &mut answer => answer,
            _given_up = given_up => match self.kill_on_its_way().await {
                true => answer.await,
                // Nor will the keeper answer the first call: it is not waited for, and its descriptors are closed.
                false => return Err(self.given_up()),
            },
        };
        match answer {
            // After the process's pidfd.
            Ok((_started, descriptors)) => Ok(descriptors.into_iter().nth(1)),
            Err(LinkError::Failure(Failure::Init(failure))) => Err(CriError::failed(
                format!("exec in container {}", self.container.id),
                format!("{failure}: {command:?}"),
            )),
            // It may run, or come to run when a keeper that is stopped goes on: nobody waits for it.
            Err(
                error @ (LinkError::NoAnswer { .. } | LinkError::Broken { .. } | LinkError::NoDescriptors),
            ) => {
                let _answers = self.kill_on_its_way().await;
                Err(error.into())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Ends a process that has not become its command yet: another process can stop it there. The keeper takes this call
    /// after the one that starts the process. A clone of the process may be in the cgroup alone. Whether the keeper answers:
    /// one that goes on later finds no cgroup that it could clone the process into.
    async fn kill_on_its_way(&self) -> bool {
        const SIGKILL: i32 = 9;
        let killed = self.link.done(Call::SignalExec { exec: self.id.clone(), signal: SIGKILL }).await;
        self.kill().await;
        // One that has ended by itself is not known any more.
        matches!(killed, Ok(()) | Err(LinkError::Failure(_)))
    }

    async fn kill(&self) {
        self.link.forget_exec(&self.id);
        self.with_cgroup("kill an exec", |cgroup, id| {
            for cgroup in [cgroup.existing_sibling(id), cgroup.existing_child(id)] {
                cgroup.kill()?;
                cgroup.remove_if_empty()?;
            }
            Ok(Vec::new())
        })
        .await;
    }

    /// What the command left running keeps its cgroup, until a later exec finds it empty or the container is removed.
    async fn leave(&self) {
        let earlier = self.container.take_left(LOOKED_AT);
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

    async fn with_cgroup<W>(&self, what: &'static str, work: W)
    where
        W: FnOnce(&Cgroup, &str) -> Result<Vec<String>, CriError> + Send + 'static,
    {
        let (daemon, container, id) = (self.daemon.clone(), self.container.clone(), self.id.clone());
        let done = blocking(move || -> Result<(), CriError> {
            let left = work(&container_cgroup(&daemon, &container)?, &id)?;
            container.put_left(left);
            Ok(())
        })
        .await;
        if let Err(error) = done {
            tracing::warn!(exec = self.id, %error, "{what}: it stays until the container is removed");
        }
    }
}

/// The keeper of a container that runs.
pub(super) fn link_of(daemon: &Shared, container: &Container) -> Result<Link, CriError> {
    let ContainerState::Running { .. } = container.state() else {
        return Err(CriError::precondition(format!("container {}", container.id), "it is not running"));
    };
    let link = daemon.store.pod(container.pod.as_str())?.link();
    link.ok_or_else(|| {
        CriError::precondition(format!("pod sandbox {}", container.pod), "its keeper has ended")
    })
}

fn container_cgroup(daemon: &Shared, container: &Container) -> Result<Cgroup, CriError> {
    let path = CgroupPath::from_recorded(&container.with(|record| record.cgroup.clone()))?;
    Ok(Cgroup::open(&daemon.hierarchies, &path))
}
