//! Loads the seccomp filter, the last step before exec.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustix::io::Errno;

use super::{At, Descriptors, Gate, StepResult};
use crate::plan::SeccompPlan;
use crate::sys::program::FilterProgram;
use crate::sys::spawn::SingleThread;
use crate::sys::{self, Context, security};
use crate::wire::transport::Report;
use crate::wire::{InitFailure, Step};

/// The maximum length of a filter in bytes: 4096 instructions of 8 (seccomp(2)).
const LONGEST: usize = 4096 * 8;

/// Reads the filter of a plan while its descriptor is still open.
pub(super) fn read(
    plan: Option<&SeccompPlan>,
    descriptors: Descriptors<'_>,
) -> StepResult<Option<FilterProgram>> {
    let Some(seccomp) = plan else { return Ok(None) };
    let bytes = descriptors.get(seccomp.filter).and_then(|fd| sys::fs::read_all(fd, LONGEST));
    Ok(Some(FilterProgram {
        bytes: bytes.at(Step::Seccomp)?,
        flags: seccomp.flags,
        notifies: seccomp.listener.is_some(),
        mute: seccomp.mute,
        early: seccomp.early,
    }))
}

/// Loads a filter. It applies to every following system call of this thread. Returns the listener, if the filter
/// has one.
pub(super) fn load_now(filter: &FilterProgram) -> StepResult<Option<OwnedFd>> {
    security::load_seccomp(&filter.bytes, filter.flags).at(Step::Seccomp)
}

/// Loads a filter. If the filter may block the reports that follow, the returned messenger sends them.
pub(super) fn load(
    filter: &FilterProgram,
    gate: &Gate,
    single: SingleThread,
) -> StepResult<Option<Messenger>> {
    let messenger = match filter.notifies || filter.mute {
        true => Some(Messenger::start(gate, single)?),
        false => None,
    };
    let listener = load_now(filter)?;
    if let (Some(messenger), Some(listener)) = (&messenger, listener) {
        messenger.hand_over(listener);
    }
    Ok(messenger)
}

/// A thread that the filter does not apply to. It makes the system calls that the filter may reject or pass to a
/// supervisor: it sends the listener's descriptor, and the failure of the exec. The filtered thread notifies it
/// through memory, without a system call.
#[derive(Debug)]
pub(super) struct Messenger {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    listener: OnceLock<OwnedFd>,
    /// Whether the listener is sent.
    sent: AtomicBool,
    /// The errno of the failed exec; 0 while it has not failed.
    errno: AtomicI32,
}

/// The interval at which the thread checks the shared memory.
const POLL_INTERVAL: Duration = Duration::from_micros(50);

/// The size of the thread's stack.
const STACK: usize = 64 << 10;

impl Messenger {
    /// Starts the thread. Consumes the proof that there is only one thread, because there are two afterwards.
    fn start(gate: &Gate, _single: SingleThread) -> StepResult<Self> {
        let gate = gate.another().at(Step::Seccomp)?;
        let shared = Arc::<Shared>::default();
        let watched = shared.clone();
        let spawned = std::thread::Builder::new().stack_size(STACK).spawn(move || watch(&watched, &gate));
        let errno = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::AGAIN);
        spawned.map_err(errno).on("clone", "a thread").at(Step::Seccomp)?;
        Ok(Self { shared })
    }

    fn hand_over(&self, listener: OwnedFd) {
        // Setting a cell that has no waiters makes no system call.
        drop(self.shared.listener.set(listener));
        while !self.shared.sent.load(Ordering::Acquire) {
            std::hint::spin_loop();
        }
    }

    /// Reports that the exec failed. The thread then ends the process.
    pub(super) fn fail(&self, errno: Errno) -> ! {
        self.shared.errno.store(errno.raw_os_error(), Ordering::Release);
        loop {
            std::hint::spin_loop();
        }
    }
}

fn watch(shared: &Shared, gate: &Gate) -> ! {
    loop {
        match shared.errno.load(Ordering::Acquire) {
            0 => std::thread::sleep(POLL_INTERVAL),
            errno => gate.fail(exec_failure(errno)),
        }
        if let Some(listener) = shared.listener.get().filter(|_| !shared.sent.load(Ordering::Relaxed)) {
            gate.report(&Report::Listener, Some(listener.as_fd()));
            shared.sent.store(true, Ordering::Release);
        }
    }
}

/// Returns the failure of the exec.
pub(super) fn exec_failure(errno: i32) -> InitFailure {
    InitFailure { step: Step::Exec, errno, index: None, detail: String::new() }
}
