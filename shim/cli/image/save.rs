//! `berth image save`: writes images to a file or a pipe.

use std::fs::File;
use std::io::{IsTerminal as _, Write, stdout};
use std::path::{Path, PathBuf};

use berth_proto::admin::SaveImagesRequest;
use berth_proto::admin::admin_client::AdminClient;
use clap::Args;

use super::ConfigSource;
use crate::server::connect;

#[derive(Clone, Debug, Args)]
pub(super) struct SaveArgs {
    /// Names or ids of the images
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<String>,
    /// Write the archive to this file [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    source: ConfigSource,
}

pub(super) async fn run(args: SaveArgs) -> Result<String, String> {
    match &args.output {
        None if stdout().is_terminal() => {
            Err("refusing to write an archive to a terminal: use -o FILE".to_owned())
        }
        None => receive(&args, &mut stdout().lock()).await,
        Some(file) => {
            // The archive gets its name when it is complete.
            let beside = part_of(file);
            let failed = |error: std::io::Error| format!("{}: {error}", beside.display());
            let mut out = File::create(&beside).map_err(failed)?;
            let done = match receive(&args, &mut out).await {
                Ok(text) => out
                    .sync_all()
                    .and_then(|()| std::fs::rename(&beside, file))
                    .map(|()| text)
                    .map_err(failed),
                Err(error) => Err(error),
            };
            if done.is_err() {
                // The first error is the one to report.
                drop(std::fs::remove_file(&beside));
            }
            done
        }
    }
}

fn part_of(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".part");
    PathBuf::from(name)
}

async fn receive(args: &SaveArgs, out: &mut impl Write) -> Result<String, String> {
    let config = args.source.clone().load().map_err(|error| error.to_string())?;
    let channel = connect(&config.socket).await.map_err(|error| error.to_string())?;
    let request = SaveImagesRequest { images: args.images.clone() };
    let failed = |status: tonic::Status| format!("failed to save images: {}", status.message());
    let mut pieces = AdminClient::new(channel).save_images(request).await.map_err(failed)?.into_inner();
    while let Some(piece) = pieces.message().await.map_err(failed)? {
        out.write_all(&piece.data).map_err(|error| format!("failed to write the archive: {error}"))?;
    }
    out.flush().map_err(|error| format!("failed to write the archive: {error}"))?;
    Ok(String::new())
}
