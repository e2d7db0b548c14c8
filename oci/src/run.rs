//! `run`: creates and starts a container, and waits for its end.

use std::os::fd::AsFd;

use crate::arguments::{Global, Run};
use crate::create::{Created, Start, create};
use crate::delete::delete;
use crate::error::Result;
use crate::foreground::{self, Signals};
use crate::start::open_gate;
use crate::store::Store;

/// Runs the command. Returns the container's exit code.
pub(crate) fn create_and_start(global: &Global, store: &Store, arguments: &Run) -> Result<u8> {
    let start = Start::ByThis { detached: arguments.detach };
    let Created { container, launched, hooks } = create(global, store, &arguments.create, start)?;
    let started = open_gate(&container, launched.process.gate.as_fd(), hooks.as_ref());
    let ended = started.and_then(|()| match arguments.detach {
        true => Ok(0),
        false => foreground::wait(&launched.process, launched.terminal.as_ref(), &Signals::catch()?),
    });
    let stays = ended.is_ok() && (arguments.detach || arguments.keep);
    if ended.is_err() {
        launched.process.kill();
    }
    if !stays {
        delete(global, &container, hooks.as_ref())?;
    }
    ended
}
