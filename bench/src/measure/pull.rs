//! Images from a registry: pulled, removed, and pulled again.

use std::time::{Duration, Instant};

use futures_util::future::try_join_all;

use berth_proto::v1::{ImageSpec, ImageStatusRequest, PullImageRequest, RemoveImageRequest};

use crate::bench::Bench;
use crate::client::{PULL_DEADLINE, timed, timed_within};
use crate::daemon::{Cost, CostMeter};
use crate::error::BenchError;
use crate::figures::{Samples, number};

/// Pulls each image `--pull-count` times. An existing image is removed first. It is left in place at the end if it
/// existed before.
pub(super) async fn measure(bench: &Bench) -> Result<(), BenchError> {
    for reference in &bench.options.pulls {
        let mut samples = Samples::default();
        let mut costs = Vec::new();
        let was_there = is_there(bench, reference).await?;
        let mut result = Ok(());
        for _ in 0..bench.options.pull_count {
            result = one(bench, reference, &mut samples, &mut costs).await;
            if result.is_err() {
                break;
            }
        }
        bench.add(samples);
        add_costs(bench, &format!("PullImage {reference}"), &costs);
        if !was_there {
            remove(bench, reference).await?;
        }
        result?;
    }
    together(bench).await
}

/// Pulls all images of `--together` at the same time, `--pull-count` times.
async fn together(bench: &Bench) -> Result<(), BenchError> {
    let references = &bench.options.together;
    if references.is_empty() {
        return Ok(());
    }
    let name = format!("PullImage, {} at once", references.len());
    let (mut samples, mut costs) = (Samples::default(), Vec::new());
    for _ in 0..bench.options.pull_count {
        for reference in references {
            remove(bench, reference).await?;
        }
        settle().await;
        let meter = bench.daemon.map(CostMeter::start);
        let began = Instant::now();
        try_join_all(references.iter().map(|reference| pull(bench, reference))).await?;
        samples.push(&name, began.elapsed());
        costs.extend(meter.and_then(|meter| meter.cost()));
    }
    for reference in references {
        remove(bench, reference).await?;
    }
    bench.add(samples);
    add_costs(bench, &name, &costs);
    Ok(())
}

/// Adds the median processor time and the maximum peak memory.
fn add_costs(bench: &Bench, name: &str, costs: &[Cost]) {
    let mut times: Vec<_> = costs.iter().map(|cost| cost.cpu).collect();
    times.sort_unstable();
    if let (Some(cpu), Some(peak)) = (times.get(times.len() / 2), costs.iter().map(|cost| cost.peak_kb).max())
    {
        bench.add_figure(format!("{name}: processor time"), cpu.as_secs_f64(), "s");
        bench.add_figure(format!("{name}: highest memory"), number(peak) / 1024.0, "MiB");
    }
}

/// Waits until removed images are deleted in the background, so that this does not affect the next pull.
async fn settle() {
    tokio::time::sleep(Duration::from_secs(2)).await;
}

async fn one(
    bench: &Bench,
    reference: &str,
    samples: &mut Samples,
    costs: &mut Vec<Cost>,
) -> Result<(), BenchError> {
    remove(bench, reference).await?;
    settle().await;
    let meter = bench.daemon.map(CostMeter::start);
    let took = pull(bench, reference).await?;
    samples.push(&format!("PullImage {reference}"), took);
    costs.extend(meter.and_then(|meter| meter.cost()));
    Ok(())
}

async fn pull(bench: &Bench, reference: &str) -> Result<Duration, BenchError> {
    let request = PullImageRequest { image: spec(reference), ..Default::default() };
    let pulled =
        timed_within("PullImage", PULL_DEADLINE, bench.client.images.clone().pull_image(request)).await?;
    Ok(pulled.took)
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
