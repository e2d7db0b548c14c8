//! The last steps: from a process that has become the user to the exec of its program. Every descriptor but the standard
//! streams and the gate is closed first, so that nothing of the host is left when the process appears in a PID namespace
//! where others can look into it (CVE-2016-9962, CVE-2024-21626).

use std::os::fd::{AsFd, OwnedFd};

use super::process::candidates;
use super::seccomp::{self, exec_failure};
use super::{At, Done, Gate, START};
use crate::plan::ProcessPlan;
use crate::sys::process::{default_signals, exit_now};
use crate::sys::program::{CStrings, FilterProgram, Program};
use crate::sys::spawn::SingleThread;
use crate::sys::{Context, namespaces::Namespaces, pty, security};
use crate::wire::transport::Report;
use crate::wire::{InitFailure, Step};

/// How a process goes on once everything is prepared.
#[derive(Clone, Copy, Debug)]
pub(super) struct Way {
    /// Standard input is a terminal.
    pub(super) terminal: bool,
    /// It goes on in a PID namespace that has been joined.
    pub(super) joins_processes: bool,
    /// It waits at the gate.
    pub(super) waits: bool,
}

/// What is needed to become the program of a plan.
pub(super) fn program(plan: &ProcessPlan, filter: Option<FilterProgram>, way: Way) -> Program {
    Program {
        paths: CStrings::new(&candidates(plan)),
        arguments: CStrings::new(&plan.args),
        environment: CStrings::new(&plan.env),
        filter,
        capabilities: plan.capabilities,
        processes: super::process::processes(plan).map(|limit| (limit.soft, limit.hard)),
        terminal: way.terminal,
        joins_processes: way.joins_processes,
        waits: way.waits,
    }
}

/// Closes all that is not the program's, and walks the last steps. Ends by exec, or by telling the failure.
pub(super) fn go(gate: Gate, single: SingleThread, program: Program) -> ! {
    // Where even this fails, the keeper learns it from the end of the process.
    let _failed = single.close_all_but(gate.into_socket(), program, walk);
    exit_now(1)
}

fn walk(socket: OwnedFd, program: Program, single: SingleThread) -> ! {
    let gate = Gate::new(socket);
    let failure = match steps(&gate, program, single) {
        Ok(never) => match never {},
        Err(failure) => failure,
    };
    gate.fail(failure)
}

fn steps(gate: &Gate, mut program: Program, single: SingleThread) -> Done<std::convert::Infallible> {
    default_signals();
    if program.joins_processes {
        // Whoever can trace the new process must not find it without its filter, nor with the capability that loading
        // the filter takes.
        if let Some(filter) = program.filter.take_if(|filter| filter.early) {
            seccomp::load_now(&filter)?;
            security::set_capabilities(&program.capabilities).at(Step::Capabilities)?;
        }
        single.go_on_as_sibling(Namespaces::NONE).at(Step::Clone)?;
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
        gate.wait_for(START);
    }
    Err(become_program(gate, &program, single))
}

/// Loads the filter, if it is not loaded yet, and becomes the program; comes back only with the failure.
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

/// Sends the master of a terminal to the keeper, which is the only one to keep it.
pub(super) fn hand_over_terminal(gate: &Gate, master: &OwnedFd) {
    gate.report(&Report::Terminal, Some(master.as_fd()));
}
