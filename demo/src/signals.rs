//! Exit on SIGTERM.
//!
//! The first process of a PID namespace has no default actions: the kernel drops a SIGTERM without a handler
//! (pid_namespaces(7)), and the runtime would wait for the whole grace period. A blocked signal is not dropped, so a
//! thread waits for it. This needs no handler.

use std::io::{self, Write};

use nix::sys::signal::{SigSet, Signal};

/// Makes SIGTERM and SIGINT end the program with exit code 0, because the stop was requested.
///
/// Must be called before other threads start, because they inherit the blocked signals.
pub(crate) fn end_on_sigterm() -> io::Result<()> {
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    signals.thread_block()?;
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        let name = signals.wait().map_or("a signal", Signal::as_str);
        drop(writeln!(io::stdout(), "ended by {name}"));
        std::process::exit(0);
    })?;
    Ok(())
}
