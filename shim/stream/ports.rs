//! PortForward after the client has opened its streams: each connection of the client becomes a connection to
//! a port on the pod's loopback interface. Its errors are reported on its error stream and affect no other
//! connection.

use std::os::fd::AsFd;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use super::inbox::{Broken, Incoming};
use super::outgoing::{Gone, Outgoing};
use crate::error::CriError;
use crate::store::Store;

/// Size of one read.
const READ_SIZE: usize = 64 << 10;

/// One forwarded connection of a client.
#[derive(Debug)]
pub(super) struct Forwarded {
    pub(super) port: u16,
    pub(super) from_client: Incoming,
    pub(super) to_client: Outgoing,
    pub(super) error: Outgoing,
    /// The client can end one direction of the connection. If it cannot, the connection ends when the pod
    /// closes it.
    pub(super) half_closes: bool,
}

/// Forwards one connection until it ends.
pub(super) async fn forward(store: &Store, pod: &str, forwarded: Forwarded) {
    let Forwarded { port, from_client, to_client, error: error_stream, half_closes } = forwarded;
    match connect(store, pod, port).await {
        Ok(stream) => relay(stream, from_client, to_client, half_closes).await,
        Err(error) => {
            tracing::debug!(pod, port, %error, "failed to forward a port");
            let report = format!("error forwarding port {port} to pod {pod}: {error}");
            // The client may be gone; errors are then dropped, here and below.
            drop(error_stream.send(Bytes::from(report)).await);
            drop(to_client.abort().await);
        }
    }
    drop(error_stream.finish().await);
}

async fn connect(store: &Store, pod: &str, port: u16) -> Result<TcpStream, CriError> {
    let pod = store.pod(pod)?;
    if pod.host_network() {
        return Ok(berth_cni::port_forward::connect(None, port).await?);
    }
    let netns = pod.netns();
    let netns = netns
        .ok_or_else(|| CriError::precondition(format!("pod sandbox {}", pod.id), "it is not running"))?;
    Ok(berth_cni::port_forward::connect(Some(netns.as_fd()), port).await?)
}

/// Relays bytes in both directions, and the end of each. A reset on one side becomes a reset on the other. It
/// is not reported as an error of the forwarding, which would make kubectl give up all its connections.
async fn relay(stream: TcpStream, from_client: Incoming, to_client: Outgoing, half_closes: bool) {
    let (mut from_pod, to_pod) = stream.into_split();
    let mut inward = std::pin::pin!(relay_input(from_client, to_pod));
    let mut outward = std::pin::pin!(relay_output(&mut from_pod, &to_client));
    let mut input_done = false;
    let out = loop {
        tokio::select! {
            passed = &mut inward, if !input_done => match passed {
                Ok(()) => input_done = true,
                Err(Broken) => break Err(Gone),
            },
            passed = &mut outward => break passed,
        }
    };
    // The client may be gone; errors are then dropped.
    drop(match &out {
        Ok(()) => to_client.finish().await,
        Err(Gone) => to_client.abort().await,
    });
    if out.is_ok() && half_closes && !input_done {
        // The pod may still read.
        drop(inward.await);
    }
}

/// Relays bytes to the pod until the client's end. If the pod closes its reading side, this ends as well;
/// what the pod still sends is relayed.
async fn relay_input(mut from: Incoming, mut to: OwnedWriteHalf) -> Result<(), Broken> {
    while let Some(bytes) = from.next().await? {
        if to.write_all(&bytes).await.is_err() {
            return Ok(());
        }
    }
    // The pod may have closed it already.
    drop(to.shutdown().await);
    Ok(())
}

async fn relay_output(from: &mut OwnedReadHalf, to: &Outgoing) -> Result<(), Gone> {
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(READ_SIZE);
        if from.read_buf(&mut buffer).await.map_err(|_| Gone)? == 0 {
            return Ok(());
        }
        to.send(buffer.split().freeze()).await?;
    }
}
