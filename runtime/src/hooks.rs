//! Runs hooks: programs that the runtime starts at points of a container's life (OCI runtime specification,
//! "POSIX-platform Hooks"). The specification's state of the container is their standard input.
//!
//! A hook runs in its own process group and has a time limit. Its output is read all the time, so that it never
//! waits for a reader, but only the start is kept, for the error.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use rustix::pipe::{PipeFlags, pipe_with};

use crate::plan::{HookKind, HookPlan, Hooks};
use crate::sys;
use crate::time_limit::{Output, wait};
use crate::wire::{InitFailure, Step};

/// The number of bytes of a hook's output that are kept for its error.
const OUTPUT_LIMIT: usize = 1024;

/// The order in which the hooks of one kind are run after a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OnFailure {
    Stop,
    Continue,
}

/// Runs the hooks of one kind in order. The first failure ends the run, except for `poststop` hooks, which all run:
/// the first failure is returned (OCI runtime specification, "Lifecycle").
///
/// If `cancel` is closed by its other end, the running hook is killed.
///
/// # Errors
/// A hook cannot be executed, fails or exceeds its time. The failure has the hook's index among all hooks of the plan.
pub fn run(
    hooks: &Hooks,
    kind: HookKind,
    pid: i32,
    cancel: Option<BorrowedFd<'_>>,
) -> Result<(), InitFailure> {
    let state = hooks.state_at(kind, pid);
    let on_failure = if kind == HookKind::Poststop { OnFailure::Continue } else { OnFailure::Stop };
    let mut first = Ok(());
    for (index, hook) in hooks.of(kind) {
        let Err((errno, detail)) = run_one(hook, &state, cancel) else { continue };
        let failure = InitFailure { step: Step::Hook, errno, index: u32::try_from(index).ok(), detail };
        if first.is_ok() {
            first = Err(failure);
        }
        if on_failure == OnFailure::Stop {
            break;
        }
    }
    first
}

/// An errno, or 0 if none fits, and a detail.
type HookFailure = (i32, String);

fn run_one(hook: &HookPlan, state: &str, cancel: Option<BorrowedFd<'_>>) -> Result<(), HookFailure> {
    let called = |call: &'static str| {
        move |error: io::Error| (error.raw_os_error().unwrap_or_default(), call.to_owned())
    };
    let (output, writer) = pipe_with(PipeFlags::CLOEXEC).map_err(io::Error::from).map_err(called("pipe"))?;
    let other = writer.try_clone().map_err(called("dup"))?;
    let stdin = standard_input(state).map_err(called("memfd_create"))?;
    let mut command = Command::new(&hook.path);
    let variables = hook.env.iter().filter_map(|variable| variable.split_once('='));
    command.args(hook.args.get(1..).unwrap_or_default()).env_clear().envs(variables).process_group(0);
    if let Some(name) = hook.args.first() {
        command.arg0(name);
    }
    command.stdin(Stdio::from(stdin)).stdout(Stdio::from(writer)).stderr(Stdio::from(other));
    let mut child = command.spawn().map_err(called("execve"))?;
    // The command holds the pipe's other end.
    drop(command);
    let mut output = Output::new(Some(output), OUTPUT_LIMIT);
    let allowed = hook.limit();
    let ended = wait(&mut child, &mut output, allowed, cancel).map_err(called("waitpid"))?;
    match ended {
        Some(status) if status.success() => Ok(()),
        Some(status) => Err((0, format!("{status}{}", output.message()))),
        None => Err((0, format!("ended after {} s{}", allowed.as_secs(), output.message()))),
    }
}

/// Returns the state as a file: a hook need not read its standard input, and a pipe would hold only a part of it.
fn standard_input(state: &str) -> io::Result<OwnedFd> {
    let file = sys::fs::sealed("state", state.as_bytes(), false)
        .map_err(|error| io::Error::from_raw_os_error(error.raw()))?;
    rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(0))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;
    use std::time::{Duration, Instant};

    use super::*;

    fn hooks(scripts: &[&str]) -> Hooks {
        let plan = |script: &&str| HookPlan {
            path: "/bin/sh".to_owned(),
            args: vec!["hook".to_owned(), "-c".to_owned(), (*script).to_owned()],
            env: vec!["PATH=/usr/bin:/bin".to_owned()],
            timeout: Some(1),
        };
        let poststop: Vec<_> = scripts.iter().map(plan).collect();
        Hooks {
            state: r#"{"pid":"PID","status":"creating","annotations":{"a":"PID"}}"#.to_owned(),
            prestart: poststop.clone(),
            poststop,
            ..Hooks::default()
        }
    }

    fn run(hooks: &Hooks, kind: HookKind) -> Result<(), InitFailure> {
        super::run(hooks, kind, 7, None)
    }

    #[test]
    fn a_hook_gets_the_state_and_its_environment_only() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("seen");
        let script = format!("{{ cat; echo; env | sort; }} >{}", file.display());
        run(&hooks(&[&script]), HookKind::Prestart).unwrap();
        let seen = std::fs::read_to_string(file).unwrap();
        let state = r#"{"pid":7,"status":"creating","annotations":{"a":"PID"}}"#;
        assert_eq!(seen.lines().next(), Some(state), "{seen}");
        let variables: Vec<_> = seen.lines().skip(1).map(|line| line.split('=').next().unwrap()).collect();
        assert!(variables.iter().all(|name| ["PATH", "PWD", "SHLVL", "_"].contains(name)), "{seen}");
    }

    #[test]
    fn a_failure_has_the_output_and_ends_the_run() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("late");
        let late = format!("touch {}", file.display());
        let failing = hooks(&["true", "echo broken >&2; exit 3", &late]);
        let failure = run(&failing, HookKind::Prestart).unwrap_err();
        assert_eq!((failure.index, failure.detail.as_str()), (Some(1), "exit status: 3: broken"));
        assert!(!file.exists());
        let failure = run(&failing, HookKind::Poststop).unwrap_err();
        assert_eq!(failure.detail, "exit status: 3: broken");
        assert!(file.exists(), "poststop hooks all run");
    }

    #[test]
    fn a_hook_that_writes_much_does_not_wait_for_a_reader() {
        let failure =
            run(&hooks(&["head -c 1000000 /dev/zero | tr '\\0' x; exit 4"]), HookKind::Prestart).unwrap_err();
        assert!(failure.detail.starts_with("exit status: 4: xxx"), "{}", failure.detail);
        assert!(failure.detail.len() < OUTPUT_LIMIT + 40);
    }

    #[test]
    fn a_hook_is_killed_with_its_children_after_its_time() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("child");
        let script = format!("sleep 60 & echo $! >{}; echo waits; wait", file.display());
        let failure = run(&hooks(&[&script]), HookKind::Prestart).unwrap_err();
        assert_eq!(failure.detail, "ended after 1 s: waits");
        let child = std::fs::read_to_string(file).unwrap();
        // The child has the signal. On a busy machine it ends a moment later.
        let until = Instant::now() + Duration::from_secs(30);
        let lives = || {
            let status = std::fs::read_to_string(format!("/proc/{}/stat", child.trim())).unwrap_or_default();
            !status.is_empty() && !status.contains(") Z ")
        };
        while lives() {
            assert!(Instant::now() < until, "the child of the hook lives on");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn a_program_that_does_not_exist_is_named_by_its_errno() {
        let mut missing = hooks(&["true"]);
        missing.prestart.iter_mut().for_each(|hook| hook.path = "/no/such/hook".to_owned());
        let failure = run(&missing, HookKind::Prestart).unwrap_err();
        assert_eq!(failure.errno, 2);
    }

    #[test]
    fn a_closed_socket_cancels_a_hook() {
        let (ours, theirs) = sys::socket::pair().unwrap();
        drop(theirs);
        let mut long = hooks(&["exec sleep 60"]);
        long.prestart.iter_mut().for_each(|hook| hook.timeout = None);
        let start = Instant::now();
        super::run(&long, HookKind::Prestart, 7, Some(ours.as_fd())).unwrap_err();
        assert!(start.elapsed() < Duration::from_secs(20));
    }
}
