//! `berth load`: sends the path of a file to the daemon, which reads it into its store.

use std::path::PathBuf;
use std::process::ExitCode;

use berth_proto::admin::LoadImageRequest;
use berth_proto::admin::admin_client::AdminClient;
use clap::Args;

use super::ConfigSource;
use crate::server::connect;

/// Arguments of `berth load`.
#[derive(Clone, Debug, Args)]
pub struct LoadArgs {
    /// OCI layout (a folder), OCI archive or docker-archive
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    source: ConfigSource,
}

pub(super) fn run(args: LoadArgs) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return super::fail(&format!("failed to start: {error}")),
    };
    match runtime.block_on(load(args)) {
        Ok(text) => super::print(&text),
        Err(error) => super::fail(&error),
    }
}

async fn load(args: LoadArgs) -> Result<String, String> {
    let config = args.source.load().map_err(|error| error.to_string())?;
    // The daemon has another working directory.
    let file =
        std::fs::canonicalize(&args.file).map_err(|error| format!("{}: {error}", args.file.display()))?;
    let path = file.to_str().ok_or_else(|| format!("{}: the path is not UTF-8", file.display()))?;
    let channel = connect(&config.socket).await.map_err(|error| error.to_string())?;
    let request = LoadImageRequest { path: path.to_owned() };
    let answer = AdminClient::new(channel)
        .load_image(request)
        .await
        .map_err(|status| format!("failed to load {path}: {}", status.message()))?;
    let images = answer.into_inner().images;
    let lines = images.into_iter().map(|image| match image.tags.is_empty() {
        true => format!("{}\n", image.id),
        false => format!("{} {}\n", image.id, image.tags.join(" ")),
    });
    Ok(lines.collect())
}
