//! `berth image pull`: shows a bar for each layer on a terminal, a line for each when piped.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io::{IsTerminal as _, stderr};
use std::path::{Path, PathBuf};
use std::time::Instant;

use berth_proto::admin::admin_client::AdminClient;
use berth_proto::admin::{LayerProgress, LayerStage, PullImageRequest};
use clap::Args;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::{ConfigSource, ImageClient, failure, human};

#[derive(Clone, Debug, Args)]
pub(super) struct PullArgs {
    /// Name of the image, such as busybox:1.36 or quay.io/team/app@sha256:...
    #[arg(value_name = "IMAGE")]
    image: String,
    /// Read credentials from this file (user:password) [default: the daemon's auth_file]
    #[arg(long, value_name = "FILE")]
    credentials: Option<PathBuf>,
    #[command(flatten)]
    source: ConfigSource,
}

pub(super) async fn run(args: PullArgs) -> Result<String, String> {
    let (username, password) =
        args.credentials.as_deref().map(read_credentials).transpose()?.unwrap_or_default();
    let mut client = ImageClient::connect(args.source).await?;
    let began = Instant::now();
    let request = PullImageRequest { image: args.image.clone(), username, password };
    let failed = |status: tonic::Status| failure("pull", &args.image, &status);
    let mut admin = AdminClient::new(client.channel.clone());
    let mut messages = admin.pull_image(request).await.map_err(failed)?.into_inner();
    let mut display = ProgressDisplay::new();
    let mut id = String::new();
    while let Some(message) = messages.message().await.map_err(failed)? {
        display.show(&message.layers);
        id = message.id;
    }
    let size = client.find(&id).await?.map_or(0, |image| image.size);
    Ok(format!("{id} {} in {:.1} s\n", human(size), began.elapsed().as_secs_f64()))
}

/// Reads credentials from a file: a secret on the command line is readable by all (proc(5), `/proc/pid/cmdline`).
pub(super) fn read_credentials(file: &Path) -> Result<(String, String), String> {
    let text = std::fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
    match text.trim().split_once(':') {
        Some((username, password)) => Ok((username.to_owned(), password.to_owned())),
        None => Err(format!("{}: not in the form user:password", file.display())),
    }
}

/// The display of a pull's progress on standard error. Standard output has only the result.
enum ProgressDisplay {
    Bars {
        all: MultiProgress,
        bars: HashMap<String, ProgressBar>,
    },
    /// The stages that have been printed.
    Lines(HashMap<String, LayerStage>),
}

impl ProgressDisplay {
    fn new() -> Self {
        if stderr().is_terminal() {
            Self::Bars { all: MultiProgress::new(), bars: HashMap::new() }
        } else {
            Self::Lines(HashMap::new())
        }
    }

    fn show(&mut self, layers: &[LayerProgress]) {
        match self {
            Self::Bars { all, bars } => {
                for layer in layers {
                    let bar = bars.entry(layer.digest.clone()).or_insert_with(|| all.add(new_bar(layer)));
                    bar.set_position(layer.received);
                    if layer.stage() == LayerStage::Done && !bar.is_finished() {
                        // A layer that already existed has received nothing.
                        bar.set_position(layer.size);
                        bar.finish_with_message("done");
                    }
                }
            }
            Self::Lines(printed) => {
                for line in stage_changes(printed, layers) {
                    eprintln!("{line}");
                }
            }
        }
    }
}

fn new_bar(layer: &LayerProgress) -> ProgressBar {
    let template = "{prefix}  [{bar:30}] {bytes:>11} of {total_bytes:<11} {msg}";
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(layer.size).with_style(style.progress_chars("=> ")).with_prefix(short(&layer.digest))
}

fn short(digest: &str) -> String {
    digest.split(':').next_back().unwrap_or_default().chars().take(12).collect()
}

/// Returns a line for each layer that has reached another stage.
fn stage_changes(printed: &mut HashMap<String, LayerStage>, layers: &[LayerProgress]) -> Vec<String> {
    let mut lines = Vec::new();
    for layer in layers {
        let stage = layer.stage();
        match printed.entry(layer.digest.clone()) {
            Entry::Occupied(former) if *former.get() == stage => continue,
            Entry::Occupied(mut former) => drop(former.insert(stage)),
            Entry::Vacant(new) => drop(new.insert(stage)),
        }
        let word = match stage {
            LayerStage::Waiting => continue,
            LayerStage::Receiving => "receiving",
            LayerStage::Done => "done",
        };
        lines.push(format!("{} {word} {}", short(&layer.digest), human(layer.size)));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn piped_output_has_a_line_for_each_stage() {
        let layer = |digest: &str, stage: LayerStage| LayerProgress {
            digest: format!("sha256:{digest}"),
            size: 2048,
            received: 0,
            stage: stage.into(),
        };
        let mut printed = HashMap::new();
        let waiting = [layer("a", LayerStage::Waiting), layer("b", LayerStage::Receiving)];
        assert_eq!(stage_changes(&mut printed, &waiting), ["b receiving 2.0 KiB"]);
        assert!(stage_changes(&mut printed, &waiting).is_empty());
        let later = [layer("a", LayerStage::Receiving), layer("b", LayerStage::Done)];
        assert_eq!(stage_changes(&mut printed, &later), ["a receiving 2.0 KiB", "b done 2.0 KiB"]);
    }
}
