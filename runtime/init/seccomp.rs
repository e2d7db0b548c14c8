//! Loading the filter of system calls: the last step before exec.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustix::io::Errno;

use super::{At, Descriptors, Done, Gate};
use crate::plan::SeccompPlan;
use crate::sys::program::FilterProgram;
use crate::sys::spawn::SingleThread;
use crate::sys::{self, Context, security};
use crate::wire::transport::Report;
use crate::wire::{InitFailure, Step};

/// The most bytes of a filter: 4096 instructions of 8 (seccomp(2)).
const LONGEST: usize = 4096 * 8;

/// Reads the filter of a plan while its descriptor is there.
pub(super) fn read(plan: Option<&SeccompPlan>, descriptors: Descriptors<'_>) -> Done<Option<FilterProgram>> {
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

/// Loads a filter: from here on every call of this thread is subject to it.
pub(super) fn load_now(filter: &FilterProgram) -> Done<Option<OwnedFd>> {
    security::load_seccomp(&filter.bytes, filter.flags).at(Step::Seccomp)
}

/// Loads a filter. What can still be told after that goes by the messenger, where the filter needs one.
pub(super) fn load(filter: &FilterProgram, gate: &Gate, single: SingleThread) -> Done<Option<Messenger>> {
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

/// A thread that is not subject to the filter, for what the filter may refuse or hand over: sending the listener's
/// descriptor, and the failure of the exec. The filtered thread tells it by memory, which takes no system call.
#[derive(Debug)]
pub(super) struct Messenger {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    listener: OnceLock<OwnedFd>,
    /// The listener is sent.
    sent: AtomicBool,
    /// Why the exec failed; 0 while it has not.
    errno: AtomicI32,
}

/// How often the thread looks.
const LOOK: Duration = Duration::from_micros(50);

/// Bytes of the thread's stack.
const STACK: usize = 64 << 10;

impl Messenger {
    /// Takes the proof of a single thread, which is none from here on.
    fn start(gate: &Gate, _single: SingleThread) -> Done<Self> {
        let own = gate.another().at(Step::Seccomp)?;
        let shared = Arc::<Shared>::default();
        let watched = shared.clone();
        let spawned = std::thread::Builder::new().stack_size(STACK).spawn(move || watch(&watched, &own));
        let errno = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::AGAIN);
        spawned.map_err(errno).on("clone", "a thread").at(Step::Seccomp)?;
        Ok(Self { shared })
    }

    fn hand_over(&self, listener: OwnedFd) {
        // A cell that is set once and has no waiters takes no system call.
        drop(self.shared.listener.set(listener));
        while !self.shared.sent.load(Ordering::Acquire) {
            std::hint::spin_loop();
        }
    }

    /// Tells that no program could be exec'd; the thread then ends the process.
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
            0 => std::thread::sleep(LOOK),
            errno => gate.fail(exec_failure(errno)),
        }
        if let Some(listener) = shared.listener.get().filter(|_| !shared.sent.load(Ordering::Relaxed)) {
            gate.report(&Report::Listener, Some(listener.as_fd()));
            shared.sent.store(true, Ordering::Release);
        }
    }
}

/// The program could not be exec'd.
pub(super) fn exec_failure(errno: i32) -> InitFailure {
    InitFailure { step: Step::Exec, errno, index: None, detail: String::new() }
}
