//! A client of a container's own streams. Several can be attached at once, and the log has the output in any case.
//!
//! The container's pace is its own: the keeper gives each client what the buffer of its socket takes ([`BEHIND`]), and
//! lets go of one that is further behind, which is told so ([`End::TooSlow`]). Where the container's input is to end with
//! its first client (CRI `ContainerConfig.stdin_once`), the end of that client's input is the end of the container's; else,
//! and with a terminal, it is the end of the client's session, as with containerd and CRI-O.

use std::io::Error;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};

use berth_runtime::plan::FdSlot;
use berth_runtime::sys::socket;
use berth_runtime::wire::{Call, Detachment};

use super::process::link_of;
use super::session::{Control, End, Reader, Session, Streams, Wanted, Writer};
use crate::daemon::Shared;
use crate::descriptors;
use crate::error::CriError;
use crate::keeper::Link;

/// How many bytes a client may be behind with reading one stream. None of it is used by a client that keeps up.
const BEHIND: usize = 16 << 20;

static NEXT: AtomicU64 = AtomicU64::new(0);

/// Attaches to a running container: to the streams that are wanted and that it has. With a terminal that is stdin and
/// stdout. A container without standard input, or whose input has ended, breaks the pipe of a client that writes to it.
///
/// # Errors
/// `NotFound`; `FailedPrecondition` where the container does not run; `Unimplemented` by a keeper that a daemon without
/// this call has started.
pub async fn attach(daemon: &Shared, container_id: &str, wanted: Wanted) -> Result<Session, CriError> {
    let container = daemon.store.container(container_id)?;
    let link = link_of(daemon, &container)?;
    let _permit = descriptors::reserve("attach")?;
    let tty = container.with(|record| record.config.tty);
    let wanted = Wanted { stderr: wanted.stderr && !tty, tty, ..wanted };
    let failed = |error| CriError::internal("make the streams of a client", error);
    let (streams, descriptors) = ends_of(wanted).map_err(failed)?;
    let client = format!("client-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let mut slots = (0_u32..).map(FdSlot);
    let mut slot = |wanted: bool| if wanted { slots.next() } else { None };
    let id = container.id.as_str().to_owned();
    let call = Call::Attach {
        container: id.clone(),
        client: client.clone(),
        stdin: slot(wanted.stdin),
        stdout: slot(wanted.stdout),
        stderr: slot(wanted.stderr),
    };
    let detached = link.detachment(&client);
    let known = Known { link: link.clone(), client };
    link.call(call, descriptors).await?;
    let control = if tty { Control::kept(link, id) } else { Control::none() };
    let waiting = Box::pin(async move {
        let _known = known;
        tokio::select! {
            biased;
            why = detached => match why {
                Ok(Detachment::InputEnded) => End::Detached,
                Ok(Detachment::Behind) => End::TooSlow,
                Err(_) => End::Gone,
            },
            exit = container.ended() => End::Exited(exit.code),
        }
    });
    Ok(Session::attached(streams, control, waiting))
}

/// The daemon's ends, and the keeper's in the order of the streams.
fn ends_of(wanted: Wanted) -> std::io::Result<(Streams, Vec<OwnedFd>)> {
    let mut streams = Streams { stdin: None, stdout: None, stderr: None };
    let mut descriptors = Vec::new();
    if wanted.stdin {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        streams.stdin = Some(Writer::new(write, false)?);
        descriptors.push(read);
    }
    for (wanted, stream) in [(wanted.stdout, &mut streams.stdout), (wanted.stderr, &mut streams.stderr)] {
        if wanted {
            let (ours, theirs) =
                socket::stream_pair(BEHIND).map_err(|error| Error::from_raw_os_error(error.raw()))?;
            *stream = Some(Reader::new(ours)?);
            descriptors.push(theirs);
        }
    }
    Ok((streams, descriptors))
}

/// A client that the link waits for; not any more when this is dropped.
struct Known {
    link: Link,
    client: String,
}

impl Drop for Known {
    fn drop(&mut self) {
        self.link.forget_client(&self.client);
    }
}
