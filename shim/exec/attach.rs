//! Clients that are attached to a container's own streams. Several can be attached to one container; the log
//! has the output in any case.
//!
//! A client never slows the container down. The keeper writes what fits into the client's socket buffer
//! ([`CLIENT_BUFFER`]) and detaches a client that falls further behind ([`SessionEnd::TooSlow`]).
//!
//! If the container's input ends with its first client (CRI `ContainerConfig.stdin_once`), the end of that
//! client's input ends the container's input. Otherwise, and with a terminal, it ends the client's session,
//! as in containerd and CRI-O.

use std::io::Error;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};

use berth_runtime::plan::FdSlot;
use berth_runtime::sys::socket;
use berth_runtime::wire::{Call, Detachment};

use super::access::keeper_of;
use super::session::{Control, OutputReader, Session, SessionEnd, SessionStreams, Writer};
use crate::descriptors;
use crate::error::CriError;
use crate::keeper::KeeperClient;
use crate::session_url::RequestedStreams;
use crate::store::Store;

/// How many bytes a client may be behind in reading one stream. A client that keeps up uses none of it.
const CLIENT_BUFFER: usize = 16 << 20;

static NEXT_NUMBER: AtomicU64 = AtomicU64::new(0);

/// Attaches to a running container, to those requested streams that it has. With a terminal, these are stdin
/// and stdout. If the container has no standard input, or it has ended, a client that writes to it gets a
/// broken pipe.
///
/// # Errors
/// `NotFound`; `FailedPrecondition` if the container does not run; `Unimplemented` if the pod's keeper was
/// started by an older daemon without this call.
pub async fn attach(
    store: &Store,
    container_id: &str,
    requested: RequestedStreams,
) -> Result<Session, CriError> {
    let container = store.container(container_id)?;
    let link = keeper_of(store, &container)?;
    let _permit = descriptors::reserve("attach")?;
    let tty = container.with(|record| record.config.tty);
    let requested = RequestedStreams { stderr: requested.stderr && !tty, tty, ..requested };
    let failed = |error| CriError::internal("create the streams of a client", error);
    let (streams, descriptors) = streams_for(requested).map_err(failed)?;
    let client = format!("client-{}-{}", std::process::id(), NEXT_NUMBER.fetch_add(1, Ordering::Relaxed));
    let mut slots = (0_u32..).map(FdSlot);
    let mut slot = |is_requested: bool| if is_requested { slots.next() } else { None };
    let id = container.id.as_str().to_owned();
    let call = Call::Attach {
        container: id.clone(),
        client: client.clone(),
        stdin: slot(requested.stdin),
        stdout: slot(requested.stdout),
        stderr: slot(requested.stderr),
    };
    let detached = link.detachment(&client);
    let registration = ClientRegistration { link: link.clone(), client };
    link.call(call, descriptors).await?;
    let control = if tty { Control::of_container(link, id) } else { Control::none() };
    let waiting = Box::pin(async move {
        let _registration = registration;
        tokio::select! {
            biased;
            why = detached => match why {
                Ok(Detachment::InputEnded) => SessionEnd::Detached,
                Ok(Detachment::Behind) => SessionEnd::TooSlow,
                Err(_) => SessionEnd::Gone,
            },
            exit = container.ended() => SessionEnd::Exited(exit.code),
        }
    });
    Ok(Session::attached(streams, control, waiting))
}

/// Creates the streams: the daemon's ends, and the keeper's in the order of the streams.
fn streams_for(requested: RequestedStreams) -> std::io::Result<(SessionStreams, Vec<OwnedFd>)> {
    let mut streams = SessionStreams { stdin: None, stdout: None, stderr: None };
    let mut descriptors = Vec::new();
    if requested.stdin {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        streams.stdin = Some(Writer::new(write, false)?);
        descriptors.push(read);
    }
    for (is_requested, stream) in
        [(requested.stdout, &mut streams.stdout), (requested.stderr, &mut streams.stderr)]
    {
        if is_requested {
            let (ours, theirs) =
                socket::stream_pair(CLIENT_BUFFER).map_err(|error| Error::from_raw_os_error(error.raw()))?;
            *stream = Some(OutputReader::new(ours)?);
            descriptors.push(theirs);
        }
    }
    Ok((streams, descriptors))
}

/// A registered receiver for a client's detachment. Dropping this removes it.
struct ClientRegistration {
    link: KeeperClient,
    client: String,
}

impl Drop for ClientRegistration {
    fn drop(&mut self) {
        self.link.forget_client(&self.client);
    }
}
