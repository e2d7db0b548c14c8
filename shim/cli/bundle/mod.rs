//! `berth bundle`: an archive for a defect report, without secrets. A part that is not available has the reason
//! instead.
//!
//! * [`redact`]: removes secrets
//! * [`archive`]: the file; [`host`]: facts of the host
//! * this file: the parts

mod archive;
mod host;
mod redact;

use std::path::PathBuf;
use std::process::ExitCode;

use berth_proto::v1::{ImageSpec, ImageStatusRequest, ListImagesRequest, StatusRequest};
use clap::Args;
use serde::Serialize;
use serde_json::{Value, json};

use super::diag::gather::{PageOptions, page};
use super::diag::render;
use super::events;
use super::format::size;
use super::node::select::{Objects, Selected};
use super::node::{Endpoint, NodeClient, answer, run as run_command};
use crate::check;
use crate::info::{API_VERSION, NAME, VERSION};
use archive::Archive;
use redact::Redactor;

/// Arguments of `berth bundle`.
#[derive(Clone, Debug, Args)]
pub struct BundleArgs {
    /// Write the archive to this file, which must not exist [default: berth-bundle-TIME.tar.gz]
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// Read the log of this systemd unit
    #[arg(long, value_name = "UNIT", default_value = "berth.service")]
    unit: String,
    #[command(flatten)]
    endpoint: Endpoint,
}

/// No argument and no log line of a container is in a bundle.
const PAGES: PageOptions = PageOptions { arguments: false, logs: false, lines: 50 };

pub(super) fn run(args: BundleArgs) -> ExitCode {
    run_command(write(args))
}

/// The parts of the archive, by their file names. Texts are redacted at the end, when all secrets are known.
#[derive(Default)]
struct BundleFiles {
    redactor: Redactor,
    texts: Vec<(String, String)>,
}

impl BundleFiles {
    fn text(&mut self, name: &str, text: Result<String, String>) {
        let text = text.unwrap_or_else(|reason| format!("not available: {reason}\n"));
        self.texts.push((name.to_owned(), text));
    }

    fn json(&mut self, name: &str, value: Result<Value, String>) {
        let value = value.unwrap_or_else(|reason| json!({ "notAvailable": reason }));
        let value = self.redactor.value(value);
        // A value of plain maps and lists can always be encoded.
        let text = serde_json::to_string_pretty(&value).map_err(|error| error.to_string());
        self.text(name, text.map(|text| text + "\n"));
    }
}

async fn write(args: BundleArgs) -> Result<String, String> {
    let now = jiff::Timestamp::now();
    let name = format!("berth-bundle-{}", now.strftime("%Y%m%dT%H%M%SZ"));
    let path = args.file.clone().unwrap_or_else(|| PathBuf::from(format!("{name}.tar.gz")));
    let failed = |error: std::io::Error| format!("failed to write {}: {error}", path.display());
    let mut archive =
        Archive::create(&path, &name, u64::try_from(now.as_second()).unwrap_or(0)).map_err(failed)?;
    let mut parts = BundleFiles::default();
    of_host(&mut parts, &args).await;
    match NodeClient::connect(args.endpoint).await {
        Ok(mut node) => of_daemon(&mut parts, &mut node).await,
        // The other parts are more useful if the daemon does not run.
        Err(reason) => parts.text("daemon.txt", Err(reason)),
    }
    for (name, text) in &parts.texts {
        archive.add(name, &parts.redactor.text(text)).map_err(failed)?;
    }
    archive.finish().map_err(failed)?;
    let bytes = std::fs::metadata(&path).map_err(failed)?.len();
    Ok(format!("{}: {} files, {}\n", path.display(), parts.texts.len(), size(bytes)))
}

async fn of_host(parts: &mut BundleFiles, args: &BundleArgs) {
    parts.text("version.txt", Ok(format!("{NAME} {VERSION} (CRI {API_VERSION})\n")));
    parts.json("check.json", encoded(check::host()));
    let config = args.endpoint.clone().load();
    parts.json("config.json", config.map_err(|error| error.to_string()).and_then(|config| encoded(&config)));
    parts.text("host.txt", Ok(host::facts()));
    parts.text("journal.txt", host::journal(&args.unit).await);
}

async fn of_daemon(parts: &mut BundleFiles, node: &mut NodeClient) {
    let status = answer("get the status", node.runtime.status(StatusRequest { verbose: true })).await;
    parts.json("status.json", status.and_then(|status| encoded(&status)));
    let running = node.operations().await;
    let operations = running.as_ref().map(|running| format!("{running:#?}\n")).map_err(Clone::clone);
    parts.text("operations.txt", operations);
    let events = node.recent_events().await.map(|events| {
        let lines = events.iter().map(|event| events::text(event) + "\n");
        lines.collect()
    });
    parts.text("events.txt", events);
    let (pods, containers) = (node.pods().await, node.containers().await);
    images(parts, node).await;
    let (running, pods, containers) = match (running, pods, containers) {
        (Ok(running), Ok(pods), Ok(containers)) => (running, pods, containers),
        (Err(reason), ..) | (_, Err(reason), _) | (.., Err(reason)) => {
            return parts.text("pods.txt", Err(reason));
        }
    };
    for pod in &pods {
        let inspected = node.pod_status(&pod.id).await.and_then(|status| encoded(&status));
        parts.json(&format!("pods/{}.json", pod.id), inspected);
    }
    for container in &containers {
        let inspected = node.container_status(&container.id).await.and_then(|status| encoded(&status));
        parts.json(&format!("containers/{}.json", container.id), inspected);
    }
    let objects = Objects { pods: &pods, containers: &containers, operations: &running.operations };
    let creating = running.operations.iter().filter(|operation| operation.rpc == "RunPodSandbox");
    let selected = pods.iter().map(|pod| (&pod.id, Selected::Pod(pod)));
    let selected = selected.chain(containers.iter().map(|found| (&found.id, Selected::Container(found))));
    let selected = selected.chain(creating.map(|seen| (&seen.pod_id, Selected::Creating(seen))));
    for (id, selected) in selected {
        let page = page(node, &objects, &running, selected, PAGES).await;
        parts.text(&format!("diag/{id}.txt"), page.map(|page| render::text(&page)));
    }
}

async fn images(parts: &mut BundleFiles, node: &mut NodeClient) {
    let listed = answer("list images", node.images.list_images(ListImagesRequest { filter: None })).await;
    let images = match listed {
        Ok(listed) => listed.images,
        Err(reason) => return parts.text("images.txt", Err(reason)),
    };
    for image in images {
        let spec = ImageSpec { image: image.id.clone(), ..ImageSpec::default() };
        let request = ImageStatusRequest { image: Some(spec), verbose: true };
        let status = answer("get the status of an image", node.images.image_status(request)).await;
        let name = image.id.replace(':', "-");
        parts.json(&format!("images/{name}.json"), status.and_then(|status| encoded(&status)));
    }
}

fn encoded(value: &impl Serialize) -> Result<Value, String> {
    serde_json::to_value(value).map_err(|error| format!("failed to encode JSON: {error}"))
}
