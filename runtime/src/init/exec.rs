//! The steps of a further process in a running container, except for the last ones, which are in `last.rs`.

use std::os::fd::BorrowedFd;

use super::last::{self, FinalSteps};
use super::process::{self, Streams};
use super::seccomp;
use super::{At, Descriptors, Gate, StepResult};
use crate::path::Root;
use crate::plan::ExecPlan;
use crate::procfs::Proc;
use crate::sys::keys::{self, KeyringName};
use crate::sys::namespaces::{self, Namespaces};
use crate::sys::program::Program;
use crate::sys::spawn::SingleThread;
use crate::sys::{mount, security};
use crate::wire::Step;

/// The arguments of [`run`].
#[derive(Debug)]
pub struct ExecStart<'a> {
    /// The exec's plan.
    pub plan: &'a ExecPlan,
    /// The descriptors that the plan's slots refer to.
    pub descriptors: Descriptors<'a>,
    /// The container's first process, for the exec to join its namespaces.
    pub init: BorrowedFd<'a>,
    /// The container's session keyring.
    pub keyring: &'a KeyringName,
    /// The keeper's private procfs.
    pub proc: &'a Proc,
    /// The standard streams. A terminal replaces them.
    pub streams: Streams<'a>,
    /// The socket to the keeper.
    pub gate: Gate,
    /// The number of descriptors after the standard streams that the program gets. They are open.
    pub preserved: u32,
    /// Proof that this process has one thread and can be cloned.
    pub single: SingleThread,
}

/// Executes the plan. The process ends by exec, or after it has reported a failure.
pub fn run(start: ExecStart<'_>) -> ! {
    drop(security::set_dumpable(false));
    start.gate.enter(&start.plan.cgroup, start.descriptors);
    match prepare(&start) {
        Ok(program) => last::run(start.gate, start.single, program),
        Err(failure) => start.gate.fail(failure),
    }
}

fn prepare(start: &ExecStart<'_>) -> StepResult<Program> {
    let ExecStart { plan, descriptors, streams, proc, gate, .. } = start;
    let filter = seccomp::read(plan.process.seccomp.as_ref(), *descriptors)?;
    keys::join_session(start.keyring).at(Step::Keyring)?;
    // This process itself stays outside of the PID namespace; its children will be inside (setns(2)).
    let all = Namespaces::MOUNT
        | Namespaces::NET
        | Namespaces::IPC
        | Namespaces::UTS
        | Namespaces::CGROUP
        | Namespaces::PID;
    match &plan.userns {
        Some(userns) => process::enter_user_namespace(&plan.process, userns, streams, proc, || {
            namespaces::join_of(start.init, all | Namespaces::USER)
        })?,
        None => namespaces::join_of(start.init, all).at(Step::JoinNamespaces)?,
    }
    if plan.tty {
        let root = Root::new(mount::place("/").at(Step::Terminal)?);
        let (master, slave) = process::open_terminal(&root, &plan.process)?;
        last::hand_over_terminal(gate, &master);
        process::set_streams(&Streams::of_terminal(&slave), &plan.process)?;
    } else {
        process::set_streams(streams, &plan.process)?;
    }
    match &plan.userns {
        Some(_) => process::set_labels(&plan.process, proc)?,
        None => process::set_limits_and_labels(&plan.process, proc)?,
    }
    process::set_credentials_and_cwd(&plan.process)?;
    let variant = FinalSteps {
        terminal: plan.tty,
        joins_processes: true,
        waits: false,
        keeps_gate: false,
        preserved: start.preserved,
    };
    Ok(last::program(&plan.process, filter, None, variant))
}
