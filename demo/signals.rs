//! SIGTERM ends the program.
//!
//! The first process of a pid namespace has no default actions: a SIGTERM that it has no handler for is dropped
//! (pid_namespaces(7)), and the runtime would wait out the grace period. A signal that is blocked is not dropped, so a
//! thread waits for it, which needs no handler.

use std::io::{self, Write};

use nix::sys::signal::{SigSet, Signal};

/// From now on SIGTERM and SIGINT end the program with exit code 0: it was asked to stop, and it did.
///
/// To be called before other threads start: they inherit the blocked signals.
pub(crate) fn end_on_sigterm() -> io::Result<()> {
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    signals.thread_block()?;
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        let word = signals.wait().map_or("a signal", Signal::as_str);
        drop(writeln!(io::stdout(), "ended by {word}"));
        std::process::exit(0);
    })?;
    Ok(())
}
