//! `createContainer` hooks: host programs that change a container's root filesystem before the process changes its
//! root (OCI runtime specification, "POSIX-platform Hooks"). The edits of CDI devices add them. They run in the
//! container's namespaces, but see the host's paths.

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::StepResult;
use crate::plan::{HookPlan, Hooks};
use crate::wire::{InitFailure, Step};

/// The time limit of a hook that specifies none. The daemon's wait for the gate is limited as well.
const LONGEST: Duration = Duration::from_secs(30);

/// The number of bytes of a hook's standard error that are reported.
const STDERR_LIMIT: u64 = 1024;

/// Runs the hooks in order. The first one that fails makes the container fail.
pub(super) fn run(hooks: &Hooks) -> StepResult<()> {
    // Runtimes write the pid of the process's own namespace here.
    let pid = rustix::process::getpid().as_raw_nonzero();
    let state = hooks.state.replace(Hooks::PID, &pid.to_string());
    for (index, hook) in hooks.create_container.iter().enumerate() {
        let index = u32::try_from(index).ok();
        run_one(hook, &state).map_err(|(errno, detail)| InitFailure {
            step: Step::Hook,
            errno,
            index,
            detail,
        })?;
    }
    Ok(())
}

fn run_one(hook: &HookPlan, state: &str) -> Result<(), (i32, String)> {
    let called = |call: &'static str| {
        move |error: std::io::Error| (error.raw_os_error().unwrap_or_default(), call.to_owned())
    };
    let mut command = Command::new(&hook.path);
    let variables = hook.env.iter().filter_map(|variable| variable.split_once('='));
    command.args(hook.args.get(1..).unwrap_or_default()).env_clear().envs(variables);
    if let Some(name) = hook.args.first() {
        std::os::unix::process::CommandExt::arg0(&mut command, name);
    }
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(called("execve"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A hook need not read its standard input.
        drop(stdin.write_all(state.as_bytes()));
    }
    let allowed = hook.timeout.map_or(LONGEST, |seconds| Duration::from_secs(u64::from(seconds)));
    let status = wait(&mut child, allowed).map_err(called("waitpid"))?;
    match status {
        Some(status) if status.success() => Ok(()),
        Some(status) => Err((0, format!("{status}{}", stderr_of(&mut child)))),
        None => Err((0, format!("ended after {} s{}", allowed.as_secs(), stderr_of(&mut child)))),
    }
}

/// Waits for the hook. Returns how it ended, or `None` if it exceeded the time and was killed.
fn wait(child: &mut Child, allowed: Duration) -> std::io::Result<Option<std::process::ExitStatus>> {
    let start = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if start.elapsed() >= allowed {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// Returns what the hook has written to its standard error. A pipe holds more than is reported (pipe(7)).
fn stderr_of(child: &mut Child) -> String {
    let Some(stderr) = child.stderr.take() else { return String::new() };
    // Processes that the hook left behind may hold the pipe open: only what is there already is read.
    if rustix::fs::fcntl_setfl(&stderr, rustix::fs::OFlags::NONBLOCK).is_err() {
        return String::new();
    }
    let mut bytes = Vec::new();
    drop(stderr.take(STDERR_LIMIT).read_to_end(&mut bytes));
    let text = String::from_utf8_lossy(&bytes);
    match text.trim() {
        "" => String::new(),
        text => format!(": {text}"),
    }
}
