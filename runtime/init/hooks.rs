//! `createContainer` hooks: programs of the host that change a container's root filesystem before it is the root (OCI
//! runtime specification, "POSIX-platform Hooks"; the edits of CDI devices bring them). They run in the namespaces of the
//! container, where paths are still those of the host.

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::Done;
use crate::plan::{HookPlan, Hooks};
use crate::wire::{InitFailure, Step};

/// A hook without a time of its own gets this much: the step up to the gate has a limit too.
const LONGEST: Duration = Duration::from_secs(30);

/// How much of what a hook complains of is told.
const COMPLAINT: u64 = 1024;

/// Runs them in their order; the first that fails fails the container.
pub(super) fn run(hooks: &Hooks) -> Done<()> {
    // The number that runtimes write here is the one of the process' own namespace.
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
        // A hook that does not read what it is given is its own affair.
        drop(stdin.write_all(state.as_bytes()));
    }
    let allowed = hook.timeout.map_or(LONGEST, |seconds| Duration::from_secs(u64::from(seconds)));
    let status = wait(&mut child, allowed).map_err(called("waitpid"))?;
    match status {
        Some(status) if status.success() => Ok(()),
        Some(status) => Err((0, format!("{status}{}", complaint(&mut child)))),
        None => Err((0, format!("ended after {} s{}", allowed.as_secs(), complaint(&mut child)))),
    }
}

/// How the hook ended; none where it had to be ended.
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

/// What the hook has written to its standard error; a pipe holds more than is told of it (pipe(7)).
fn complaint(child: &mut Child) -> String {
    let Some(stderr) = child.stderr.take() else { return String::new() };
    // What it may have left running holds the pipe open: only what is there is read.
    if rustix::fs::fcntl_setfl(&stderr, rustix::fs::OFlags::NONBLOCK).is_err() {
        return String::new();
    }
    let mut bytes = Vec::new();
    drop(stderr.take(COMPLAINT).read_to_end(&mut bytes));
    let text = String::from_utf8_lossy(&bytes);
    match text.trim() {
        "" => String::new(),
        text => format!(": {text}"),
    }
}
