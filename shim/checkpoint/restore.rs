//! The helper process of a restore. The keeper executes it as the first process of the new container, in the place that
//! [`berth_runtime::restore`] describes. It runs CRIU, which creates the processes of the checkpoint, and CRIU runs the
//! check of [`super::restore_check`] before they run.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, ExitCode, ExitStatus, Stdio};

use berth_runtime::plan::{ContainerPlan, PidNamespace};
use berth_runtime::restore::{PROGRAM, ROOT, RestoreGate, SOCKET};
use berth_runtime::sys::namespaces;
use berth_runtime::wire::{InitFailure, Step};
use rustix::io::FdFlags;

use super::container_dump::errors_of;
use super::inventory;
use super::received::ReceivedCheckpoint;
use super::restore_arguments::{self, RESTORE_LOG, RestoreFacts, SCRIPT};
use super::restore_check::RestoredProcesses;
use super::restore_order::{FAILURE, PIDS, RestoreOrder, work};
use super::restore_points::{check_external, external_mounts};

/// The hidden command of berth that checks the processes.
pub const CHECK_COMMAND: &str = "checkpoint-confine";
/// The helper process.
#[must_use]
pub fn helper() -> ExitCode {
    let Ok(gate) = RestoreGate::inherited() else {
        eprintln!("berth: only the keeper runs this command");
        return ExitCode::FAILURE;
    };
    match restore(&gate) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            report_failure(&gate, &why);
            ExitCode::FAILURE
        }
    }
}

/// Starts a thread that checks the restored processes when CRIU is about to let them run, and reports them to the keeper.
fn check_when_restored(gate: &RestoreGate) -> Result<(), String> {
    let failed = |error: io::Error| format!("failed to listen for the check: {error}");
    let listener = UnixListener::bind(SOCKET).map_err(failed)?;
    let gate = gate.as_fd().try_clone_to_owned().map(RestoreGate::new).map_err(failed)?;
    std::thread::spawn(move || {
        for mut connection in listener.incoming().flatten() {
            let mut pid = [0; 4];
            if connection.read_exact(&mut pid).is_ok()
                && check_and_report(&gate, &connection, i32::from_ne_bytes(pid)).is_ok()
            {
                drop(connection.write_all(b"r"));
            }
        }
    });
    Ok(())
}

fn check_and_report(gate: &RestoreGate, connection: &UnixStream, first: i32) -> Result<(), String> {
    let peer = rustix::net::sockopt::socket_peercred(connection).map_err(|error| error.to_string())?;
    let restored = RestoredProcesses::find(peer.pid.as_raw_nonzero().get())?;
    let report = || {
        restored.check(first)?;
        gate.restored(first).map_err(|error| format!("failed to report the processes: {error}"))
    };
    report().inspect_err(|why| {
        drop(fs::write(work().file(FAILURE), why));
        restored.end();
    })
}

/// Reports a failure. The report is short; the daemon reads the whole text from a file.
fn report_failure(gate: &RestoreGate, why: &str) {
    // The check may have left a reason, which comes before that of CRIU.
    if let Ok(mut file) = File::options().write(true).create_new(true).open(work().file(FAILURE)) {
        drop(file.write_all(why.as_bytes()));
    }
    let failure = InitFailure { step: Step::Restore, errno: 0, index: None, detail: why.to_owned() };
    // If the keeper has ended, no one waits for the report.
    drop(gate.failed(failure));
}

fn restore(gate: &RestoreGate) -> Result<(), String> {
    let work = work();
    let order = RestoreOrder::read(&work)?;
    let descriptors =
        InheritedDescriptors::open(&order).map_err(|error| format!("failed to open its streams: {error}"))?;
    // Not before: a process whose children join another PID namespace cannot start threads (pid_namespaces(7)).
    check_when_restored(gate)?;
    let facts = facts(&order, &descriptors);
    let shared = inventory::share_namespaces(&work.images());
    shared.map_err(|error| format!("failed to read its namespaces: {error}"))?;
    check_external(&work, &facts.external_mounts)?;
    write_script(&work).map_err(|error| format!("failed to write {SCRIPT}: {error}"))?;
    let status = run_criu(&order, &facts, &work)?;
    if status.success() && !work.file(FAILURE).exists() {
        return Ok(());
    }
    if let Ok(why) = fs::read_to_string(work.file(FAILURE)) {
        return Err(why);
    }
    let log = fs::read(work.file(RESTORE_LOG)).unwrap_or_default();
    Err(format!("CRIU failed ({status}): {}", errors_of(&String::from_utf8_lossy(&log))))
}

/// Descriptors that CRIU inherits.
struct InheritedDescriptors {
    streams: [OwnedFd; 3],
    network: OwnedFd,
    pids: Option<OwnedFd>,
}

impl InheritedDescriptors {
    fn open(order: &RestoreOrder) -> io::Result<Self> {
        let streams = [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()];
        let [stdin, stdout, stderr] = streams.map(|stream| rustix::io::fcntl_dupfd_cloexec(stream, 10));
        // A standard input without clients is at its end.
        let stdin = if order.plan.stdio.stdin { stdin? } else { ended_pipe()? };
        let opened = Self {
            streams: [stdin, stdout?, stderr?],
            network: File::open("/proc/self/ns/net")?.into(),
            pids: match order.plan.pid {
                PidNamespace::New | PidNamespace::Host => None,
                PidNamespace::Pod | PidNamespace::Container(_) => Some(leave_pids()?),
            },
        };
        let all = opened.streams.iter().chain([&opened.network]).chain(&opened.pids);
        for descriptor in all {
            rustix::io::fcntl_setfd(descriptor, FdFlags::empty())?;
        }
        // CRIU writes to its log, not to that of the container.
        let null = File::options().read(true).write(true).open("/dev/null")?;
        rustix::stdio::dup2_stdin(&null)?;
        rustix::stdio::dup2_stdout(&null)?;
        rustix::stdio::dup2_stderr(&null)?;
        Ok(opened)
    }
}

fn ended_pipe() -> io::Result<OwnedFd> {
    Ok(rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?.0)
}

/// Returns the PID namespace that children of this process would join. They stay in the host's: only the restored processes
/// join it.
fn leave_pids() -> io::Result<OwnedFd> {
    let pids = File::open("/proc/self/ns/pid_for_children")?;
    let own = File::open("/proc/self/ns/pid")?;
    namespaces::join_pids(own.as_fd()).map_err(|error| io::Error::other(error.to_string()))?;
    fs::write(
        work().file(PIDS),
        fs::read_link(format!("/proc/self/fd/{}", pids.as_raw_fd()))?.as_os_str().as_encoded_bytes(),
    )?;
    Ok(pids.into())
}

fn facts(order: &RestoreOrder, descriptors: &InheritedDescriptors) -> RestoreFacts {
    let number = |fd: &OwnedFd| fd.as_raw_fd();
    let streams = order.streams.iter().zip(&descriptors.streams);
    // Others, such as the null device, are opened again by their paths.
    let streams = streams.filter(|(name, _)| name.starts_with("pipe:["));
    let mut seen = BTreeSet::new();
    RestoreFacts {
        network: number(&descriptors.network),
        shared_pids: descriptors.pids.as_ref().map(number),
        streams: streams
            // Standard output and error may be the same pipe.
            .filter(|(name, _)| seen.insert((*name).clone()))
            .map(|(name, fd)| (name.clone(), number(fd)))
            .collect(),
        external_mounts: external_mounts(&order.plan),
        security: security_profile(&order.plan),
    }
}

fn security_profile(plan: &ContainerPlan) -> Option<String> {
    let apparmor = plan.process.apparmor.as_ref().map(|profile| format!("apparmor:{profile}"));
    apparmor.or_else(|| plan.process.selinux.as_ref().map(|label| format!("selinux:{label}")))
}

/// Writes the script by which CRIU runs the check: CRIU passes no arguments to it.
fn write_script(work: &ReceivedCheckpoint) -> io::Result<()> {
    let mut script =
        File::options().write(true).create(true).truncate(true).mode(0o700).open(work.file(SCRIPT))?;
    script.set_permissions(fs::Permissions::from_mode(0o700))?;
    writeln!(script, "#!{PROGRAM} {CHECK_COMMAND}")
}

fn run_criu(
    order: &RestoreOrder,
    facts: &RestoreFacts,
    work: &ReceivedCheckpoint,
) -> Result<ExitStatus, String> {
    let arguments = restore_arguments::restore(facts, Path::new(ROOT), &work.images(), work.path());
    Command::new(&order.criu)
        .args(arguments)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .map_err(|error| format!("failed to run {}: {error}", order.criu.display()))
}
