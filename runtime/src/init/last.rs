//! The last steps, from the credentials to the exec of the program. First, every descriptor but the standard
//! streams and the gate is closed, so that nothing of the host is left when the process appears in a PID namespace
//! in which others can inspect it (CVE-2016-9962, CVE-2024-21626).

use std::os::fd::{AsFd, OwnedFd};

use super::process::candidates;
use super::seccomp::{self, exec_failure};
use super::{At, Gate, StepResult};
use crate::hooks;
use crate::plan::{HookKind, Hooks, ProcessPlan};
use crate::sys::process::{default_signals, exit_now};
use crate::sys::program::{CStrings, FilterProgram, Program};
use crate::sys::spawn::SingleThread;
use crate::sys::{Context, namespaces::Namespaces, pty, security};
use crate::wire::transport::Report;
use crate::wire::{InitFailure, Step};

/// The variant of the last steps.
#[derive(Clone, Copy, Debug)]
pub(super) struct FinalSteps {
    /// Whether standard input is a terminal.
    pub(super) terminal: bool,
    /// Whether the process continues in a PID namespace that it has joined.
    pub(super) joins_processes: bool,
    /// Whether it waits at the gate.
    pub(super) waits: bool,
    /// Whether the program gets the socket to the keeper.
    pub(super) keeps_gate: bool,
    /// The number of descriptors after the standard streams that the program gets.
    pub(super) preserved: u32,
}

/// Collects what is needed to execute the program of a plan.
pub(super) fn program(
    plan: &ProcessPlan,
    filter: Option<FilterProgram>,
    start_hooks: Option<&Hooks>,
    variant: FinalSteps,
) -> Program {
    Program {
        paths: CStrings::new(&candidates(plan)),
        arguments: CStrings::new(&plan.args),
        environment: CStrings::new(&plan.env),
        filter,
        capabilities: plan.capabilities,
        processes: super::process::processes(plan).map(|limit| (limit.soft, limit.hard)),
        terminal: variant.terminal,
        joins_processes: variant.joins_processes,
        waits: variant.waits,
        keeps_gate: variant.keeps_gate,
        preserved: variant.preserved,
        start_hooks: start_hooks.cloned(),
    }
}

/// Closes all descriptors that the program must not have, and executes the last steps. The process ends by exec,
/// or after it has reported a failure.
pub(super) fn run(gate: Gate, single: SingleThread, program: Program) -> ! {
    // If even this fails, the keeper notices the end of the process.
    let _failed = single.close_all_but(gate.into_socket(), program, walk);
    exit_now(1)
}

fn walk(socket: OwnedFd, program: Program, single: SingleThread) -> ! {
    let mut gate = Gate::new(socket);
    let failure = match final_steps(&mut gate, program, single) {
        Ok(never) => match never {},
        Err(failure) => failure,
    };
    gate.fail(failure)
}

fn final_steps(
    gate: &mut Gate,
    mut program: Program,
    single: SingleThread,
) -> StepResult<std::convert::Infallible> {
    default_signals();
    if program.joins_processes {
        // A process that can trace the new one must not find it without its filter, nor with the capability that
        // is needed to load the filter.
        if let Some(filter) = program.filter.take_if(|filter| filter.early) {
            seccomp::load_now(&filter)?;
            security::set_capabilities(&program.capabilities).at(Step::Capabilities)?;
        }
        single.continue_as_sibling(Namespaces::NONE).at(Step::Clone)?;
        gate.report(&Report::Moved, None);
    }
    rustix::process::setsid().on("setsid", "").at(Step::Stdio)?;
    if program.terminal {
        pty::make_controlling(rustix::stdio::stdin()).at(Step::Terminal)?;
    }
    if let Some((soft, hard)) = program.processes {
        security::set_rlimit(security::RLIMIT_NPROC, soft, hard).at(Step::Rlimit)?;
    }
    if program.waits {
        gate.report(&Report::Ready, None);
        gate.wait_for_start();
    }
    if program.keeps_gate {
        gate.keep_over_exec().at(Step::Exec)?;
    }
    if let Some(hooks) = &program.start_hooks {
        let pid = rustix::process::getpid().as_raw_nonzero().get();
        hooks::run(hooks, HookKind::StartContainer, pid, None)?;
    }
    Err(become_program(gate, &program, single))
}

/// Loads the filter if it is not loaded yet, and executes the program. Returns only the failure.
fn become_program(gate: &Gate, program: &Program, single: SingleThread) -> InitFailure {
    let messenger =
        match program.filter.as_ref().map(|filter| seccomp::load(filter, gate, single)).transpose() {
            Ok(messenger) => messenger.flatten(),
            Err(failure) => return failure,
        };
    let errno = program.exec();
    if let Some(messenger) = messenger {
        messenger.fail(errno);
    }
    exec_failure(errno.raw_os_error())
}

/// Sends the master of a terminal to the keeper, which alone keeps it.
pub(super) fn hand_over_terminal(gate: &Gate, master: &OwnedFd) {
    gate.report(&Report::Terminal, Some(master.as_fd()));
}
