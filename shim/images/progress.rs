//! A pull that reports its progress.

use std::sync::Arc;
use std::time::Duration;

use berth_image::{Credentials, ImageStore, Reference, Stage};
use berth_proto::admin::{LayerProgress, LayerStage, PullProgress};
use futures_util::stream;
use tokio::sync::mpsc;
use tonic::Status;

use super::measured::MeasuredPull;
use super::report;
use crate::error::CriError;
use crate::pods::Pods;
use crate::responses::ResponseStream;

/// The interval of progress messages.
const INTERVAL: Duration = Duration::from_millis(100);

/// Pulls an image. The messages contain the progress, the last one the id. The pull ends if the client disconnects.
#[must_use]
pub fn pull(
    store: ImageStore,
    pods: Arc<Pods>,
    name: String,
    credentials: Option<Credentials>,
) -> ResponseStream<PullProgress> {
    let (sink, messages) = mpsc::channel(4);
    tokio::spawn(async move {
        let measured = MeasuredPull::start(pods.instruments.clone());
        tokio::select! {
            () = sink.closed() => {}
            result = report::pull(&pods.events, &name, follow(&store, &name, credentials, &sink)) => {
                measured.ended(&result);
                let last = result
                    .map(|id| PullProgress { id, ..PullProgress::default() })
                    .map_err(Status::from);
                // The send fails if the client has disconnected.
                drop(sink.send(last).await);
            }
        }
    });
    Box::pin(stream::unfold(messages, |mut messages| async {
        messages.recv().await.map(|message| (message, messages))
    }))
}

type Sink = mpsc::Sender<Result<PullProgress, Status>>;

async fn follow(
    store: &ImageStore,
    name: &str,
    credentials: Option<Credentials>,
    sink: &Sink,
) -> Result<String, CriError> {
    let candidates = store.names(name).await?;
    let pulling = store.pull_name(name, credentials.clone());
    tokio::pin!(pulling);
    let mut reported = Vec::new();
    loop {
        match tokio::time::timeout(INTERVAL, &mut pulling).await {
            Ok(result) => return Ok(result?.id.to_string()),
            Err(_) => {
                let layers = layers(store, &candidates, credentials.as_ref());
                if !layers.is_empty() && layers != reported {
                    reported.clone_from(&layers);
                    drop(sink.send(Ok(PullProgress { layers, id: String::new() })).await);
                }
            }
        }
    }
}

/// Returns the progress of the candidate that is being pulled.
fn layers(
    store: &ImageStore,
    candidates: &[Reference],
    credentials: Option<&Credentials>,
) -> Vec<LayerProgress> {
    let found = candidates.iter().map(|name| store.progress(name, credentials));
    let layers = found.into_iter().find(|layers| !layers.is_empty()).unwrap_or_default();
    let shown = layers.into_iter().map(|layer| LayerProgress {
        digest: layer.digest,
        size: layer.size,
        received: layer.received,
        stage: match layer.stage {
            Stage::Waiting => LayerStage::Waiting,
            Stage::Receiving => LayerStage::Receiving,
            Stage::Done => LayerStage::Done,
        }
        .into(),
    });
    shown.collect()
}
