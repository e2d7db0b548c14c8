//! The check of restored processes before they run: CRIU runs a process at this moment, which requests it from the helper.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;

use berth_runtime::plan::{ContainerPlan, PidNamespace};
use berth_runtime::restore::SOCKET;
use berth_runtime::sys::{process, security};

use super::confinement::{SHARED_KINDS, SeenNamespaces, ThreadStatus};
use super::images;
use super::mount_check::{MountCheck, SeenMount};
use super::received::ReceivedCheckpoint;
use super::restore_order::{FILTER, PIDS, RestoreOrder, work};
use super::restore_points::points_of;

/// The process that CRIU runs at the stages of a restore. Before the restored processes run, it has the helper check them. It
/// cannot do so itself: if the container shares the PID namespace of its pod, it runs in that, and sees other numbers.
#[must_use]
pub fn check_helper() -> ExitCode {
    if std::env::var_os("CRTOOLS_SCRIPT_ACTION").is_none_or(|action| action != "pre-resume") {
        return ExitCode::SUCCESS;
    }
    let pid = std::env::var("CRTOOLS_INIT_PID").ok().and_then(|pid| pid.parse().ok());
    let checked = pid.is_some_and(|pid: i32| ask_helper(pid).is_ok());
    if checked { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Sends the first restored process to the helper. Returns when the helper has checked and reported it.
fn ask_helper(pid: i32) -> io::Result<()> {
    let mut connection = UnixStream::connect(SOCKET)?;
    connection.write_all(&pid.to_ne_bytes())?;
    connection.read_exact(&mut [0])
}

/// The restored processes, in the helper.
pub(super) struct RestoredProcesses {
    order: RestoreOrder,
    /// CRIU, and the process that it runs.
    own: BTreeSet<i32>,
    criu: i32,
}

impl RestoredProcesses {
    /// Finds them, when CRIU runs a process with this pid.
    pub(super) fn find(script: i32) -> Result<Self, String> {
        let order = RestoreOrder::read(&work())?;
        let criu = parent_of(script);
        let helper = i32::try_from(std::process::id()).unwrap_or_default();
        if parent_of(criu) != helper {
            return Err("another process requests the check".to_owned());
        }
        Ok(Self { order, own: BTreeSet::from([script, criu, helper]), criu })
    }

    /// Checks that the restored processes have no more rights than the container.
    pub(super) fn check(&self, first: i32) -> Result<(), String> {
        check_all(&self.order, &self.list()?, first)
    }

    /// Those in the container's cgroup, except for this one, CRIU and its script.
    fn list(&self) -> Result<Vec<i32>, String> {
        let processes = self.order.processes()?;
        Ok(processes.into_iter().filter(|pid| !self.own.contains(pid) && !is_zombie(*pid)).collect())
    }

    /// Ends them before they run. CRIU lets them run otherwise. It must end as well: it traces them, and waits for the first one
    /// to end, which waits until the others are released.
    pub(super) fn end(&self) {
        self.list().unwrap_or_default().into_iter().for_each(kill);
        kill(self.criu);
    }
}

fn parent_of(pid: i32) -> i32 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok());
    parent.unwrap_or_default()
}

fn check_all(order: &RestoreOrder, processes: &[i32], first: i32) -> Result<(), String> {
    let work = work();
    if !processes.contains(&first) {
        return Err("its first process is not in the container's cgroup".to_owned());
    }
    check_filters(order, &work)?;
    check_mounts(&order.plan, first)?;
    let ours = namespaces_of("self")?;
    let of_first = namespaces_of(&first.to_string())?;
    let pids = match order.plan.pid {
        PidNamespace::Host => ours.pids.clone(),
        _ => fs::read_to_string(work.file(PIDS)).unwrap_or_default(),
    };
    for &process in processes {
        let named = |why: String| format!("process {process} of the checkpoint cannot be restored: {why}");
        namespaces_of(&process.to_string())?.check(&of_first, &ours, &pids, &order.plan).map_err(named)?;
        check_threads(process, &order.plan).map_err(named)?;
        set_limits(process, &order.plan).map_err(named)?;
    }
    Ok(())
}

fn is_zombie(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('Z') || rest.starts_with('X'))
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
