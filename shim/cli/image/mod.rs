//! `berth image`: manages the images of the running daemon over its socket.
//!
//! * [`explain`]: the servers that a pull would contact, the credentials it would use, and the servers' answers
//! * [`pull`]: pulls an image
//! * [`save`]: writes images to a file or a pipe

mod explain;
mod pull;
mod save;

use std::collections::HashSet;
use std::process::ExitCode;

use berth_proto::admin::admin_client::AdminClient;
use berth_proto::admin::{Verdict, VerifyImagesRequest};
use berth_proto::v1::image_service_client::ImageServiceClient;
use berth_proto::v1::runtime_service_client::RuntimeServiceClient;
use berth_proto::v1::{
    Image, ImageSpec, ImageStatusRequest, ListContainersRequest, ListImagesRequest, RemoveImageRequest,
};
use clap::{Args, Subcommand};
use tonic::Status;
use tonic::transport::Channel;

use super::format::size as human;
use super::load::LoadArgs;
use super::{ConfigSource, load};
use crate::server::connect;

/// Arguments of `berth image`.
#[derive(Clone, Debug, Args)]
pub struct ImageArgs {
    #[command(subcommand)]
    command: ImageCommand,
}

#[derive(Clone, Debug, Subcommand)]
enum ImageCommand {
    /// List images
    Ls(Where),
    /// Pull an image from its registry
    Pull(pull::PullArgs),
    /// Show the servers that a pull would contact, the credentials it would use, and their answers, without pulling
    Explain(explain::ExplainArgs),
    /// Load images from a file
    Load(LoadArgs),
    /// Save images to an archive that berth, docker and podman can load
    Save(save::SaveArgs),
    /// Remove images with all their names; running containers are not affected
    Rm(RmArgs),
    /// Compare images on disk with their digests
    Verify(VerifyArgs),
    /// Remove all images that are neither used by a container nor pinned
    Prune(Where),
}

#[derive(Clone, Debug, Args)]
struct Where {
    #[command(flatten)]
    source: ConfigSource,
}

#[derive(Clone, Debug, Args)]
struct VerifyArgs {
    /// Verify only this image, by name or id [default: all images]
    #[arg(value_name = "IMAGE")]
    image: Option<String>,
    /// Pull missing or changed parts again, if their registry is known
    #[arg(long)]
    repair: bool,
    #[command(flatten)]
    source: ConfigSource,
}

#[derive(Clone, Debug, Args)]
struct RmArgs {
    /// Names or ids of the images
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<String>,
    #[command(flatten)]
    source: ConfigSource,
}

pub(super) fn run(args: ImageArgs) -> ExitCode {
    if let ImageCommand::Load(args) = args.command {
        return load::run(args);
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return super::fail(&format!("failed to start: {error}")),
    };
    match runtime.block_on(answer(args.command)) {
        Ok(text) => super::print(&text),
        Err(error) => super::fail(&error),
    }
}

async fn answer(command: ImageCommand) -> Result<String, String> {
    match command {
        ImageCommand::Ls(args) => Ok(table(&ImageClient::connect(args.source).await?.list().await?)),
        ImageCommand::Pull(args) => pull::run(args).await,
        ImageCommand::Explain(args) => explain::run(args).await,
        ImageCommand::Save(args) => save::run(args).await,
        ImageCommand::Rm(args) => {
            let mut client = ImageClient::connect(args.source).await?;
            let mut removed = String::new();
            for name in args.images {
                // RemoveImage succeeds for an unknown image; a user who mistypes a name needs an error.
                let image = client.find(&name).await?.ok_or(format!("image {name} not found"))?;
                client.remove(&image).await?;
                removed.push_str(&format!("{}\n", names(&image).join(" ")));
            }
            Ok(removed)
        }
        ImageCommand::Verify(args) => verify(args).await,
        ImageCommand::Prune(args) => prune(ImageClient::connect(args.source).await?).await,
        ImageCommand::Load(_) => Err("load is handled before".to_owned()),
    }
}

/// Counts the sound parts and lists the others. Fails if any part is broken.
async fn verify(args: VerifyArgs) -> Result<String, String> {
    let config = args.source.load().map_err(|error| error.to_string())?;
    let channel = connect(&config.socket).await.map_err(|error| error.to_string())?;
    let request = VerifyImagesRequest { image: args.image.unwrap_or_default(), repair: args.repair };
    let answer = AdminClient::new(channel).verify_images(request).await;
    let parts = answer.map_err(|status| failure("verify", "images", &status))?.into_inner().parts;
    let of = |verdict: Verdict| parts.iter().filter(move |part| part.verdict() == verdict);
    let mut text = format!("{} parts are sound\n", of(Verdict::Sound).count());
    for part in of(Verdict::Unknown) {
        text.push_str(&format!("not yet known: {} of {}\n", part.what, part.images.join(", ")));
    }
    for part in of(Verdict::Repaired) {
        text.push_str(&format!("pulled again: {} of {}: {}\n", part.what, part.images.join(", "), part.why));
    }
    for part in of(Verdict::Broken) {
        text.push_str(&format!("broken: {} of {}: {}\n", part.what, part.images.join(", "), part.why));
    }
    if of(Verdict::Broken).count() == 0 { Ok(text) } else { Err(text.trim_end().to_owned()) }
}

async fn prune(mut client: ImageClient) -> Result<String, String> {
    let containers = client.runtime.list_containers(ListContainersRequest { filter: None }).await;
    let containers =
        containers.map_err(|status| failure("list", "containers", &status))?.into_inner().containers;
    let used: HashSet<String> = containers.into_iter().map(|container| container.image_id).collect();
    let (mut text, mut freed) = (String::new(), 0_u64);
    for image in client.list().await? {
        if image.pinned || used.contains(&image.id) {
            continue;
        }
        client.remove(&image).await?;
        freed = freed.saturating_add(image.size);
        text.push_str(&format!("{}\n", names(&image).join(" ")));
    }
    text.push_str(&format!("{} freed\n", human(freed)));
    Ok(text)
}

struct ImageClient {
    channel: Channel,
    images: ImageServiceClient<Channel>,
    runtime: RuntimeServiceClient<Channel>,
}

impl ImageClient {
    async fn connect(source: ConfigSource) -> Result<Self, String> {
        let config = source.load().map_err(|error| error.to_string())?;
        let channel = connect(&config.socket).await.map_err(|error| error.to_string())?;
        Ok(Self {
            images: ImageServiceClient::new(channel.clone()),
            runtime: RuntimeServiceClient::new(channel.clone()),
            channel,
        })
    }

    async fn list(&mut self) -> Result<Vec<Image>, String> {
        let answer = self.images.list_images(ListImagesRequest { filter: None }).await;
        Ok(answer.map_err(|status| failure("list", "images", &status))?.into_inner().images)
    }

    async fn find(&mut self, name: &str) -> Result<Option<Image>, String> {
        let request = ImageStatusRequest { image: Some(spec(name)), verbose: false };
        let answer = self.images.image_status(request).await;
        Ok(answer.map_err(|status| failure("look up", name, &status))?.into_inner().image)
    }

    async fn remove(&mut self, image: &Image) -> Result<(), String> {
        let request = RemoveImageRequest { image: Some(spec(&image.id)) };
        let answer = self.images.remove_image(request).await;
        answer.map(drop).map_err(|status| failure("remove", &image.id, &status))
    }
}

fn spec(name: &str) -> ImageSpec {
    ImageSpec { image: name.to_owned(), ..ImageSpec::default() }
}

/// The error text of a failed call.
fn failure(operation: &str, object: &str, status: &Status) -> String {
    format!("failed to {operation} {object}: {}", status.message())
}

/// Returns the names of an image: its tags, else its digests, else its id.
fn names(image: &Image) -> Vec<String> {
    match (image.repo_tags.is_empty(), image.repo_digests.is_empty()) {
        (false, _) => image.repo_tags.clone(),
        (true, false) => image.repo_digests.clone(),
        (true, true) => vec![image.id.clone()],
    }
}

/// Renders one line for each name. The id is shortened as crictl and docker do.
fn table(images: &[Image]) -> String {
    let mut rows: Vec<[String; 4]> = Vec::new();
    for image in images {
        let id = image.id.trim_start_matches("sha256:").chars().take(12).collect::<String>();
        let pinned = if image.pinned { "pinned" } else { "" };
        rows.extend(
            names(image).into_iter().map(|name| [name, id.clone(), human(image.size), pinned.into()]),
        );
    }
    rows.sort();
    rows.insert(0, ["IMAGE", "ID", "SIZE", ""].map(str::to_owned));
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let (name_width, size_width) = (width(0), width(2));
    let line = |[name, id, size, pinned]: &[String; 4]| {
        let line = format!("{name:name_width$}  {id:12}  {size:>size_width$}  {pinned}");
        format!("{}\n", line.trim_end())
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_has_a_line() {
        let image = |id: &str, tags: &[&str], pinned| Image {
            id: format!("sha256:{id}"),
            repo_tags: tags.iter().map(|&tag| tag.to_owned()).collect(),
            size: 2048,
            pinned,
            ..Image::default()
        };
        let images = [image(&"a".repeat(64), &["b:1", "a:1"], false), image(&"b".repeat(64), &[], true)];
        let text = table(&images);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("IMAGE") && lines[0].ends_with("SIZE"), "{text}");
        assert!(lines[1].starts_with("a:1 ") && lines[1].ends_with("aaaaaaaaaaaa  2.0 KiB"), "{text}");
        assert!(lines[2].starts_with("b:1 "), "{text}");
        assert!(lines[3].starts_with("sha256:bbbb") && lines[3].ends_with("pinned"), "{text}");
        assert_eq!(lines.len(), 4);
    }
}
