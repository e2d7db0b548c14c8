//! A pull for a person who watches it.

use std::time::Duration;

use berth_image::{Credentials, Image, ImageStore, Reference, Stage};
use berth_proto::admin::{LayerProgress, LayerStage, PullProgress};
use futures_util::stream;
use tokio::sync::mpsc;
use tonic::Status;

use crate::daemon::Daemon;
use crate::error::CriError;
use crate::runtime_service::Answers;

/// How often the state of a pull is told.
const INTERVAL: Duration = Duration::from_millis(100);

/// Pulls an image; the messages say how far it is, and the last one has its id. Who stops listening gives it up.
#[must_use]
pub fn pull(daemon: &Daemon, name: String, credentials: Option<Credentials>) -> Answers<PullProgress> {
    let store = daemon.images.clone();
    let (sink, messages) = mpsc::channel(4);
    tokio::spawn(async move {
        tokio::select! {
            () = sink.closed() => {}
            result = follow(&store, &name, credentials, &sink) => {
                let last = result
                    .map(|image| PullProgress { id: image.id.to_string(), ..PullProgress::default() })
                    .map_err(Status::from);
                // Who has gone needs no answer.
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
) -> Result<std::sync::Arc<Image>, CriError> {
    let candidates = store.names(name).await?;
    let pulling = store.pull_name(name, credentials.clone());
    tokio::pin!(pulling);
    let mut told = Vec::new();
    loop {
        match tokio::time::timeout(INTERVAL, &mut pulling).await {
            Ok(result) => return Ok(result?),
            Err(_) => {
                let layers = layers(store, &candidates, credentials.as_ref());
                if !layers.is_empty() && layers != told {
                    told.clone_from(&layers);
                    drop(sink.send(Ok(PullProgress { layers, id: String::new() })).await);
                }
            }
        }
    }
}

/// Those of the name that is being tried.
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
