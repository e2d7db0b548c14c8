//! Loading the filter of system calls: the last step before exec.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use rustix::io::Errno;

use super::{At, Descriptors, Done, Gate};
use crate::plan::SeccompPlan;
use crate::sys::process::exit_now;
use crate::sys::{self, Context, security};
use crate::wire::transport::Report;
use crate::wire::{InitFailure, Step};

/// The most bytes of a filter: 4096 instructions of 8 (seccomp(2)).
const LONGEST: usize = 4096 * 8;

/// A filter, at hand when no descriptor is any more.
#[derive(Debug)]
pub(super) struct Filter {
    program: Vec<u8>,
    flags: u64,
    notifies: bool,
    mute: bool,
}

/// Reads the filter of a plan while its descriptor is there.
pub(super) fn read(plan: Option<&SeccompPlan>, descriptors: Descriptors<'_>) -> Done<Option<Filter>> {
    let Some(seccomp) = plan else { return Ok(None) };
    let program = descriptors.get(seccomp.filter).and_then(|fd| sys::fs::read_all(fd, LONGEST));
    Ok(Some(Filter {
        program: program.at(Step::Seccomp)?,
        flags: seccomp.flags,
        notifies: seccomp.listener.is_some(),
        mute: seccomp.mute,
    }))
}

impl Filter {
    /// Loads it: from here on every call of this thread is subject to it. What can still be told goes by the messenger,
    /// where the filter needs one.
    pub(super) fn load(&self, gate: &Gate) -> Done<Option<Messenger>> {
        let messenger = match self.notifies || self.mute {
            true => Some(Messenger::start(gate)?),
            false => None,
        };
        let listener = security::load_seccomp(&self.program, self.flags).at(Step::Seccomp)?;
        if let Some(messenger) = messenger.as_ref().filter(|_| self.notifies) {
            messenger.say(listener);
        }
        Ok(messenger)
    }
}

/// A thread that is not subject to the filter, for what the filter may refuse or hand over: sending its descriptor, and
/// the failure of the exec, by which the thread ends otherwise. It is told by a number in memory, which takes no call.
#[derive(Debug)]
pub(super) struct Messenger {
    word: Arc<AtomicI32>,
}

/// Nothing is to be told. The number of a descriptor is above 2, that of an error is told as a negative one.
const NOTHING: i32 = 0;

/// How often the thread looks.
const LOOK: Duration = Duration::from_micros(50);

/// Bytes of the thread's stack.
const STACK: usize = 64 << 10;

impl Messenger {
    fn start(gate: &Gate) -> Done<Self> {
        let own = gate.another().at(Step::Seccomp)?;
        let word = Arc::new(AtomicI32::new(NOTHING));
        let watched = word.clone();
        let spawned = std::thread::Builder::new().stack_size(STACK).spawn(move || watch(&watched, &own));
        let errno = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::AGAIN);
        spawned.map_err(errno).on("clone", "a thread").at(Step::Seccomp)?;
        Ok(Self { word })
    }

    fn say(&self, word: i32) {
        self.word.store(word, Ordering::Release);
        while self.word.load(Ordering::Acquire) != NOTHING {
            std::hint::spin_loop();
        }
    }

    /// Tells that no program could be exec'd, and ends the process.
    pub(super) fn fail(&self, errno: Errno) {
        self.say(-errno.raw_os_error());
    }
}

fn watch(word: &AtomicI32, gate: &Gate) -> ! {
    loop {
        match word.load(Ordering::Acquire) {
            NOTHING => std::thread::sleep(LOOK),
            errno if errno < 0 => gate.fail(exec_failure(errno.saturating_neg())),
            number => {
                match sys::process::inherited(number) {
                    Ok(listener) => gate.report(&Report::Listener, Some(listener.as_fd())),
                    // Without it nobody would ever answer.
                    Err(_) => exit_now(1),
                }
                word.store(NOTHING, Ordering::Release);
            }
        }
    }
}

/// The program could not be exec'd.
pub(super) fn exec_failure(errno: i32) -> InitFailure {
    InitFailure { step: Step::Exec, errno, index: None, detail: String::new() }
}
