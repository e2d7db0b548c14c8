//! The helper process of a restore. The keeper executes it as the first process of the new container, in the place that
//! [`berth_runtime::restore`] describes. It runs CRIU, which creates the processes of the checkpoint, and CRIU runs it again
//! to check them before they run.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus, Stdio};

use berth_runtime::path::Root;
use berth_runtime::plan::{ContainerPlan, PidNamespace};
use berth_runtime::restore::{MASKS, MOUNTS, PROGRAM, ROOT, RestoreGate, SOCKET, WORK};
use berth_runtime::sys::{namespaces, process, security};
use berth_runtime::wire::{InitFailure, Step};
use rustix::io::FdFlags;
use serde::{Deserialize, Serialize};

use super::confinement::{SHARED_KINDS, SeenNamespaces, ThreadStatus};
use super::dump::errors_of;
use super::images;
use super::inventory;
use super::mount_check::{MountCheck, PlanPoints, SeenMount, is_external};
use super::received::ReceivedCheckpoint;
use super::restore_arguments::{self, RESTORE_LOG, RestoreFacts, SCRIPT};

/// The hidden command of berth that checks the processes.
pub const CHECK_COMMAND: &str = "checkpoint-confine";
/// The file with the helper's order.
pub const ORDER: &str = "order.json";
/// The file with the system call filter of the new container.
pub const FILTER: &str = "filter.bpf";
/// The file with the reason why the restore failed.
pub const FAILURE: &str = "failure";
/// The file with the target of the link to a PID namespace that the container shares.
const PIDS: &str = "pids";

/// The task of the helper.
#[derive(Debug, Serialize, Deserialize)]
pub struct RestoreOrder {
    /// The program CRIU.
    pub criu: PathBuf,
    /// The folder of the container's cgroup that lists its processes.
    pub cgroup: PathBuf,
    /// The names of the standard streams at the time of the dump.
    pub streams: Vec<String>,
    /// The plan of the container.
    pub plan: ContainerPlan,
}

impl RestoreOrder {
    /// Reads the order in a folder.
    fn read(work: &ReceivedCheckpoint) -> Result<Self, String> {
        let text = fs::read(work.file(ORDER)).map_err(|error| format!("failed to read {ORDER}: {error}"))?;
        serde_json::from_slice(&text).map_err(|error| format!("failed to read {ORDER}: {error}"))
    }

    fn processes(&self) -> Result<Vec<i32>, String> {
        let text = fs::read_to_string(self.cgroup.join("cgroup.procs"));
        let text = text.map_err(|error| format!("failed to list the processes of its cgroup: {error}"))?;
        Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
    }
}

fn work() -> ReceivedCheckpoint {
    ReceivedCheckpoint::at(WORK.into())
}

/// The helper process.
#[must_use]
pub fn helper() -> ExitCode {
    let Ok(gate) = RestoreGate::inherited() else {
        eprintln!("berth: only the keeper runs this command");
        return ExitCode::FAILURE;
    };
    match report_restored(&gate).and_then(|()| restore()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            report_failure(&gate, &why);
            ExitCode::FAILURE
        }
    }
}

/// Starts a thread that passes the report of the check to the keeper. CRIU closes the descriptors of the processes that it
/// starts, so the check cannot report by itself.
fn report_restored(gate: &RestoreGate) -> Result<(), String> {
    let failed = |error: io::Error| format!("failed to listen for the check: {error}");
    let listener = UnixListener::bind(SOCKET).map_err(failed)?;
    let gate = gate.as_fd().try_clone_to_owned().map(RestoreGate::new).map_err(failed)?;
    std::thread::spawn(move || {
        for mut connection in listener.incoming().flatten() {
            let mut pid = [0; 4];
            let read = connection.read_exact(&mut pid).is_ok();
            if read && gate.restored(i32::from_ne_bytes(pid)).is_ok() {
                drop(connection.write_all(b"r"));
            }
        }
    });
    Ok(())
}

/// Passes the first restored process to the helper. Returns when the keeper has its report.
fn report_to_helper(pid: i32) -> io::Result<()> {
    let mut connection = UnixStream::connect(SOCKET)?;
    connection.write_all(&pid.to_ne_bytes())?;
    connection.read_exact(&mut [0])
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

fn restore() -> Result<(), String> {
    let work = work();
    let order = RestoreOrder::read(&work)?;
    let descriptors =
        InheritedDescriptors::open(&order).map_err(|error| format!("failed to open its streams: {error}"))?;
    let facts = facts(&order, &descriptors);
    let shared = inventory::share_namespaces(&work.images());
    shared.map_err(|error| format!("failed to read its namespaces: {error}"))?;
    check_external(&work, &facts)?;
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

/// Returns the sources of the mounts that come from outside, by their mount points. A point is named as in the request, and
/// without symbolic links: CRIU uses the latter.
fn external_mounts(plan: &ContainerPlan) -> Vec<(String, String)> {
    let points = points_of(plan);
    let mut mounts = Vec::new();
    for (index, op) in plan.mounts.iter().enumerate().filter(|(_, op)| is_external(op)) {
        let source = format!("{MOUNTS}/{index}");
        let names: BTreeSet<&String> = points.mounts.get(index).into_iter().chain([&op.target]).collect();
        mounts.extend(names.into_iter().map(|name| (name.clone(), source.clone())));
    }
    for point in &points.masked {
        let mask = if in_container(point).is_some_and(|path| path.is_dir()) { "folder" } else { "file" };
        mounts.push((point.clone(), format!("{MASKS}/{mask}")));
    }
    mounts
}

/// Returns the paths of a plan in the container without symbolic links.
fn points_of(plan: &ContainerPlan) -> PlanPoints {
    let resolved = |path: &String| resolve(path);
    let existing = |paths: &[String]| -> Vec<String> {
        paths.iter().filter(|path| in_container(path).is_some()).map(resolved).collect()
    };
    PlanPoints {
        mounts: plan.mounts.iter().map(|op| resolve(&op.target)).collect(),
        masked: existing(&plan.masked_paths),
        read_only: existing(&plan.readonly_paths),
        folders: plan.directories.iter().map(resolved).collect(),
    }
}

/// Returns a path of the host by which one can see what is at a path in the container. The kernel's filesystems are the same.
fn in_container(path: &str) -> Option<PathBuf> {
    let of_kernel = path.starts_with("/proc/") || path.starts_with("/sys/");
    let seen =
        if of_kernel { path.into() } else { Path::new(ROOT).join(resolve(path).trim_start_matches('/')) };
    seen.symlink_metadata().is_ok().then_some(seen)
}

fn resolve(path: &str) -> String {
    let plain = || match path.trim_end_matches('/') {
        "" => "/".to_owned(),
        path => path.to_owned(),
    };
    let resolved = File::open(ROOT).ok().and_then(|root| Root::new(root.into()).resolve(path).ok());
    let Some(resolved) = resolved else { return plain() };
    let seen = fs::read_link(format!("/proc/self/fd/{}", resolved.as_raw_fd())).unwrap_or_default();
    match seen.to_str().and_then(|seen| seen.strip_prefix(ROOT)) {
        Some(inside) if !inside.is_empty() => inside.to_owned(),
        _ => plain(),
    }
}

fn security_profile(plan: &ContainerPlan) -> Option<String> {
    let apparmor = plan.process.apparmor.as_ref().map(|profile| format!("apparmor:{profile}"));
    apparmor.or_else(|| plan.process.selinux.as_ref().map(|label| format!("selinux:{label}")))
}

/// Explains a mount of the checkpoint that the new container does not have. CRIU's own error names only numbers.
fn check_external(work: &ReceivedCheckpoint, facts: &RestoreFacts) -> Result<(), String> {
    let names = images::external_mounts(&work.images())
        .map_err(|error| format!("failed to read its mounts: {error}"))?;
    let has = |name: &String| facts.external_mounts.iter().any(|(point, _)| point == name);
    match names.into_iter().find(|name| !has(name)) {
        Some(missing) => Err(format!(
            "the checkpoint has a mount from outside at {missing}, which the container does not have"
        )),
        None => Ok(()),
    }
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

/// The process that CRIU runs at the stages of a restore. Before the restored processes run, it checks them and reports them
/// to the keeper.
#[must_use]
pub fn check_helper() -> ExitCode {
    if std::env::var_os("CRTOOLS_SCRIPT_ACTION").is_none_or(|action| action != "pre-resume") {
        return ExitCode::SUCCESS;
    }
    let pid = std::env::var("CRTOOLS_INIT_PID").ok().and_then(|pid| pid.parse().ok());
    let checked = pid.ok_or_else(|| "CRIU reports no process".to_owned()).and_then(check_and_report);
    let Err(why) = checked else { return ExitCode::SUCCESS };
    drop(fs::write(work().file(FAILURE), why));
    // CRIU lets them run otherwise. It must end as well: it traces them, and waits for the first one to end, which waits
    // until the others are released.
    kill_all();
    kill(i32::try_from(std::os::unix::process::parent_id()).unwrap_or_default());
    ExitCode::FAILURE
}

fn check_and_report(pid: i32) -> Result<(), String> {
    let work = work();
    let order = RestoreOrder::read(&work)?;
    let processes = restored(&order)?;
    if !processes.contains(&pid) {
        return Err("its first process is not in the container's cgroup".to_owned());
    }
    check_filters(&order, &work)?;
    check_mounts(&order.plan, pid)?;
    let ours = namespaces_of("self")?;
    let first = namespaces_of(&pid.to_string())?;
    let pids = match order.plan.pid {
        PidNamespace::Host => ours.pids.clone(),
        _ => fs::read_to_string(work.file(PIDS)).unwrap_or_default(),
    };
    for process in processes {
        let named = |why: String| format!("process {process} of the checkpoint cannot be restored: {why}");
        namespaces_of(&process.to_string())?.check(&first, &ours, &pids, &order.plan).map_err(named)?;
        check_threads(process, &order.plan).map_err(named)?;
        set_limits(process, &order.plan).map_err(named)?;
    }
    report_to_helper(pid).map_err(|error| format!("failed to report the processes: {error}"))
}

/// Returns the restored processes: those in the container's cgroup, except for this one, CRIU and the helper.
fn restored(order: &RestoreOrder) -> Result<Vec<i32>, String> {
    let processes = order.processes()?;
    let mut own = BTreeSet::new();
    let mut pid = i32::try_from(std::process::id()).unwrap_or_default();
    while processes.contains(&pid) && own.insert(pid) {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok());
        pid = parent.unwrap_or_default();
    }
    Ok(processes.into_iter().filter(|pid| !own.contains(pid) && !is_zombie(*pid)).collect())
}

fn is_zombie(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('Z') || rest.starts_with('X'))
}

fn kill_all() {
    let processes = RestoreOrder::read(&work()).and_then(|order| restored(&order)).unwrap_or_default();
    processes.into_iter().for_each(kill);
}

fn kill(pid: i32) {
    if let Ok(process) = process::open(pid) {
        process::kill(process.as_fd());
    }
}

/// Checks that the filter of the new container was loaded first in every process that has filters.
fn check_filters(order: &RestoreOrder, work: &ReceivedCheckpoint) -> Result<(), String> {
    if order.plan.process.seccomp.is_none() {
        return Ok(());
    }
    let expected =
        fs::read(work.file(FILTER)).map_err(|error| format!("failed to read {FILTER}: {error}"))?;
    let filters =
        images::filters(&work.images()).map_err(|error| format!("failed to read its filters: {error}"))?;
    match !filters.is_empty() && images::all_start_with(&filters, &expected) {
        true => Ok(()),
        false => Err("its seccomp filter is not that of the container's seccomp profile".to_owned()),
    }
}

fn check_mounts(plan: &ContainerPlan, pid: i32) -> Result<(), String> {
    let read = |process: &str| {
        let text = fs::read(format!("/proc/{process}/mountinfo")).map_err(|error| error.to_string())?;
        SeenMount::parse_all(&String::from_utf8_lossy(&text))
            .ok_or_else(|| "failed to read its mounts".to_owned())
    };
    let ours = read("self")?;
    MountCheck::new(plan, points_of(plan), &ours).check(&read(&pid.to_string())?)
}

fn namespaces_of(process: &str) -> Result<SeenNamespaces, String> {
    let link = |kind: &str| {
        let target = fs::read_link(format!("/proc/{process}/ns/{kind}"));
        target
            .map(|target| target.display().to_string())
            .map_err(|error| format!("failed to read its namespaces: {error}"))
    };
    let shared = SHARED_KINDS.map(|kind| link(kind).map(|target| (kind, target)));
    Ok(SeenNamespaces {
        shared: shared.into_iter().collect::<Result<_, _>>()?,
        mounts: link("mnt")?,
        pids: link("pid")?,
    })
}

fn check_threads(pid: i32, plan: &ContainerPlan) -> Result<(), String> {
    let failed = |error: io::Error| format!("failed to read its threads: {error}");
    for thread in fs::read_dir(format!("/proc/{pid}/task")).map_err(failed)? {
        let folder = thread.map_err(failed)?.path();
        let text = fs::read_to_string(folder.join("status")).map_err(failed)?;
        ThreadStatus::parse(&text).ok_or("failed to read its status")?.check(plan)?;
        check_label(&folder, plan)?;
    }
    Ok(())
}

/// Checks the label of the Linux security module.
fn check_label(thread: &Path, plan: &ContainerPlan) -> Result<(), String> {
    let (name, expected) = match (&plan.process.apparmor, &plan.process.selinux) {
        (Some(profile), _) => ("attr/apparmor/current", profile),
        (None, Some(label)) => ("attr/current", label),
        (None, None) => return Ok(()),
    };
    let text = fs::read_to_string(thread.join(name))
        .map_err(|error| format!("failed to read its label: {error}"))?;
    let label = text.trim_end_matches(['\0', '\n']);
    // AppArmor adds the mode: `profile (enforce)`.
    let label = label.rsplit_once(" (").map_or(label, |(label, _)| label);
    if label != expected {
        return Err(format!("its security label is {label:?}, that of the container {expected:?}"));
    }
    Ok(())
}

/// Sets the limits of the new container, which replace those of the checkpoint.
fn set_limits(pid: i32, plan: &ContainerPlan) -> Result<(), String> {
    for limit in &plan.process.rlimits {
        security::lower_rlimit_of(pid, limit.resource, limit.soft, limit.hard)
            .map_err(|error| error.to_string())?;
    }
    let Some(score) = plan.process.oom_score_adj else { return Ok(()) };
    let path = format!("/proc/{pid}/oom_score_adj");
    fs::write(&path, score.to_string()).map_err(|error| format!("failed to write {path}: {error}"))
}

/// Writes a descriptor's content to a file, for the check.
///
/// # Errors
/// The filter cannot be read, or the file not written.
pub fn keep_filter(work: &ReceivedCheckpoint, filter: BorrowedFd<'_>) -> io::Result<()> {
    const LONGEST: usize = 4096 * 8;
    let bytes = berth_runtime::sys::fs::read_all(filter, LONGEST)
        .map_err(|error| io::Error::other(error.to_string()))?;
    fs::write(work.file(FILTER), bytes)
}
