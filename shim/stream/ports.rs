//! PortForward, from the moment on that a client's streams are there: each connection of the client becomes one to a port
//! of the pod's loopback. What goes wrong with one is told on its own error stream and ends nothing else.

use std::os::fd::AsFd;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use super::inbox::{Broken, Incoming};
use super::outgoing::{Gone, Outgoing};
use crate::daemon::Shared;
use crate::error::CriError;

/// How much is read at once.
const PIECE: usize = 64 << 10;

/// One connection of a client.
#[derive(Debug)]
pub(super) struct Forwarded {
    pub(super) port: u16,
    pub(super) from_client: Incoming,
    pub(super) to_client: Outgoing,
    pub(super) error: Outgoing,
    /// The client can say that it sends nothing more. Another is done when the pod is.
    pub(super) ends: bool,
}

/// Forwards one connection to its end.
pub(super) async fn forward(daemon: &Shared, pod: &str, forwarded: Forwarded) {
    let Forwarded { port, from_client, to_client, error, ends } = forwarded;
    match connect(daemon, pod, port).await {
        Ok(stream) => pass(stream, from_client, to_client, ends).await,
        Err(why) => {
            tracing::debug!(pod, port, %why, "forward a port");
            let why = format!("error forwarding port {port} to pod {pod}: {why}");
            // The client may be gone: then there is nobody to tell, here and below.
            drop(error.send(Bytes::from(why)).await);
            drop(to_client.abort().await);
        }
    }
    drop(error.finish().await);
}

async fn connect(daemon: &Shared, pod: &str, port: u16) -> Result<TcpStream, CriError> {
    let pod = daemon.store.pod(pod)?;
    if pod.host_network() {
        return Ok(berth_cni::port_forward::connect(None, port).await?);
    }
    let netns = pod.netns();
    let netns = netns
        .ok_or_else(|| CriError::precondition(format!("pod sandbox {}", pod.id), "it is not running"))?;
    Ok(berth_cni::port_forward::connect(Some(netns.as_fd()), port).await?)
}

/// Bytes in both directions, and the end of each. A reset on either side is one on the other; it is no error of the
/// forwarding, which would make kubectl give up all its connections.
async fn pass(stream: TcpStream, from_client: Incoming, to_client: Outgoing, ends: bool) {
    let (mut from_pod, to_pod) = stream.into_split();
    let mut inward = std::pin::pin!(pass_in(from_client, to_pod));
    let mut outward = std::pin::pin!(pass_out(&mut from_pod, &to_client));
    let mut all_in = false;
    let out = loop {
        tokio::select! {
            passed = &mut inward, if !all_in => match passed {
                Ok(()) => all_in = true,
                Err(Broken) => break Err(Gone),
            },
            passed = &mut outward => break passed,
        }
    };
    // The client may be gone: then there is nobody to tell.
    drop(match &out {
        Ok(()) => to_client.finish().await,
        Err(Gone) => to_client.abort().await,
    });
    if out.is_ok() && ends && !all_in {
        // The pod may still listen.
        drop(inward.await);
    }
}

/// To the pod, up to the client's end. A pod that takes no more ends it, too: what it still sends is worth having.
async fn pass_in(mut from: Incoming, mut to: OwnedWriteHalf) -> Result<(), Broken> {
    while let Some(bytes) = from.next().await? {
        if to.write_all(&bytes).await.is_err() {
            return Ok(());
        }
    }
    // The pod may have closed it before.
    drop(to.shutdown().await);
    Ok(())
}

async fn pass_out(from: &mut OwnedReadHalf, to: &Outgoing) -> Result<(), Gone> {
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(PIECE);
        if from.read_buf(&mut buffer).await.map_err(|_| Gone)? == 0 {
            return Ok(());
        }
        to.send(buffer.split().freeze()).await?;
    }
}
