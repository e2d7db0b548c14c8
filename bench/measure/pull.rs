//! Images from a registry: pulled, removed, pulled again.

use std::time::Duration;

use berth_proto::v1::{ImageSpec, ImageStatusRequest, PullImageRequest, RemoveImageRequest};

use crate::bench::Bench;
use crate::client::{timed, timed_within};
use crate::error::BenchError;
use crate::figures::Samples;

/// How long one pull may take.
pub(crate) const DEADLINE: Duration = Duration::from_secs(300);

/// Pulls each image `--pull-count` times. An image that is there before would be found, not pulled: it is removed first,
/// and comes back with the first pull.
pub(super) async fn measure(bench: &Bench) -> Result<(), BenchError> {
    for reference in &bench.options.pulls {
        let mut samples = Samples::default();
        let was_there = is_there(bench, reference).await?;
        let mut result = Ok(());
        for _ in 0..bench.options.pull_count {
            result = one(bench, reference, &mut samples).await;
            if result.is_err() {
                break;
            }
        }
        bench.add(samples);
        if !was_there {
            remove(bench, reference).await?;
        }
        result?;
    }
    Ok(())
}

async fn one(bench: &Bench, reference: &str, samples: &mut Samples) -> Result<(), BenchError> {
    remove(bench, reference).await?;
    let request = PullImageRequest { image: spec(reference), ..Default::default() };
    let pulled = timed_within("PullImage", DEADLINE, bench.client.images.clone().pull_image(request)).await?;
    samples.push(&format!("PullImage {reference}"), pulled.took);
    Ok(())
}

async fn is_there(bench: &Bench, reference: &str) -> Result<bool, BenchError> {
    let request = ImageStatusRequest { image: spec(reference), verbose: false };
    Ok(timed("ImageStatus", bench.client.images.clone().image_status(request)).await?.answer.image.is_some())
}

async fn remove(bench: &Bench, reference: &str) -> Result<(), BenchError> {
    let request = RemoveImageRequest { image: spec(reference) };
    timed("RemoveImage", bench.client.images.clone().remove_image(request)).await?;
    Ok(())
}

fn spec(reference: &str) -> Option<ImageSpec> {
    Some(ImageSpec { image: reference.to_owned(), ..Default::default() })
}
