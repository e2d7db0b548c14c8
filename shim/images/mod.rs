//! The ImageService: one function per RPC, on the store of the image crate.
//!
//! * [`measured`]: counts pulls
//! * [`progress`]: a pull that reports its progress, for `berth image pull`
//! * [`mod@options`]: the options of the store
//! * [`report`]: the events of pulls
//! * [`save`]: archives, for `berth image save`
//! * [`mod@options`]: the options of the image store, from the configuration

mod measured;
mod options;
pub mod progress;
pub mod report;
pub mod save;

use std::collections::HashMap;
use std::sync::Arc;

use berth_image::{Credentials, FsUsage, Image, ImageStore, Printable, Reference};
use berth_proto::admin::{ExplainedServer, Explanation};
use berth_proto::v1::{
    AuthConfig, FilesystemIdentifier, FilesystemUsage, Image as CriImage, ImageFilter, ImageFsInfoResponse,
    ImageSpec, ImageStatusResponse, Int64Value, UInt64Value,
};

use crate::error::CriError;
use crate::instruments::Instruments;
use crate::oci::validate;

pub use options::options;

/// Pulls an image and returns its id, as containerd does. The kubelet then creates containers with this id.
///
/// # Errors
/// The reference, the registry or the content is invalid.
pub async fn pull(
    store: &ImageStore,
    instruments: &Arc<Instruments>,
    handlers: &[String],
    spec: &ImageSpec,
    auth: Option<&AuthConfig>,
) -> Result<String, CriError> {
    // The reference is checked first, so that the error names the field.
    spec.image.parse::<Reference>().map_err(|error| CriError::invalid("image.image", format!("{error}")))?;
    check_handler(handlers, spec)?;
    let credentials = auth.map(credentials).transpose()?.flatten();
    let measured = measured::MeasuredPull::start(instruments.clone());
    let pulled = store.pull_name(&spec.image, credentials).await;
    measured.ended(&pulled);
    Ok(pulled?.id.to_string())
}

/// Checks the runtime handler. It could select how an image is stored (CRI `ImageSpec.runtime_handler`); all handlers
/// of berth share one store.
fn check_handler(handlers: &[String], spec: &ImageSpec) -> Result<(), CriError> {
    Ok(validate::runtime_handler(handlers, "image.runtime_handler", &spec.runtime_handler)?)
}

/// Returns the credentials of the request (CRI `AuthConfig`), if it has any.
fn credentials(auth: &AuthConfig) -> Result<Option<Credentials>, CriError> {
    let credentials = Credentials::from_parts(
        &auth.username,
        &auth.password,
        &auth.auth,
        &auth.identity_token,
        &auth.registry_token,
    )
    .map_err(|error| CriError::invalid("auth", error))?;
    match credentials {
        // The credentials are sent only to the server that they are for.
        Some(credentials) if !auth.server_address.is_empty() => {
            let only = credentials.only_for(&auth.server_address);
            only.map(Some).map_err(|error| CriError::invalid("auth.server_address", error))
        }
        credentials => Ok(credentials),
    }
}

/// Returns all images, or the one that the filter names.
///
/// # Errors
/// The filter names a runtime handler that is not configured.
pub fn list(
    store: &ImageStore,
    handlers: &[String],
    filter: Option<&ImageFilter>,
) -> Result<Vec<CriImage>, CriError> {
    let requested = filter.and_then(|filter| filter.image.as_ref());
    requested.map_or(Ok(()), |spec| check_handler(handlers, spec))?;
    Ok(match requested.map(|spec| spec.image.as_str()).filter(|name| !name.is_empty()) {
        Some(name) => store.resolve(name).iter().map(|image| cri_image(image)).collect(),
        None => store.list().iter().map(|image| cri_image(image)).collect(),
    })
}

/// The largest config in bytes that a verbose status contains: clients accept messages of some megabytes.
const MAX_SHOWN: usize = 1 << 20;

/// Returns the status of one image. An unknown image is not an error (CRI: "ImageStatusResponse.Image is set to nil").
///
/// # Errors
/// The request has no name, or the details cannot be read.
pub async fn status(
    store: &ImageStore,
    handlers: &[String],
    spec: &ImageSpec,
    verbose: bool,
) -> Result<ImageStatusResponse, CriError> {
    check_handler(handlers, spec)?;
    let image = store.resolve(name_of(spec)?);
    let info = match &image {
        Some(image) if verbose => HashMap::from([("info".to_owned(), info(store, image).await?)]),
        _ => HashMap::new(),
    };
    Ok(ImageStatusResponse { image: image.map(|image| cri_image(&image)), info })
}

/// Returns the config of an image as it is on disk, and its layers, as JSON.
async fn info(store: &ImageStore, image: &Image) -> Result<String, CriError> {
    let layers = serde_json::json!(image.layers);
    let config = store.config_json(&image.id, MAX_SHOWN).await?;
    Ok(match config {
        Some(config) => format!("{{\"imageSpec\":{config},\"layers\":{layers}}}"),
        None => {
            let why = format!("the config has more than {MAX_SHOWN} bytes");
            serde_json::json!({ "imageSpec": null, "imageSpecLeftOut": why, "layers": layers }).to_string()
        }
    })
}

/// Removes an image with all its names. An unknown image is a success.
///
/// # Errors
/// The request has no name, or the image cannot be removed.
pub async fn remove(store: &ImageStore, handlers: &[String], spec: &ImageSpec) -> Result<(), CriError> {
    check_handler(handlers, spec)?;
    store.remove(name_of(spec)?).await?;
    Ok(())
}

/// Converts the explanation of a pull, for `berth image explain`.
#[must_use]
pub fn explanation(explained: berth_image::Explanation) -> Explanation {
    let servers = explained.servers.into_iter().map(|server| {
        let (digest, error) = match server.outcome {
            Ok(digest) => (digest, String::new()),
            Err(error) => (String::new(), error),
        };
        let berth_image::Server { url, notes, credentials, answers, .. } = server;
        ExplainedServer { url, notes, credentials, answers, digest, error }
    });
    Explanation { reference: explained.reference, policy: explained.policy, servers: servers.collect() }
}

fn name_of(spec: &ImageSpec) -> Result<&str, CriError> {
    if spec.image.is_empty() {
        return Err(CriError::invalid("image.image", "is empty"));
    }
    Ok(&spec.image)
}

/// Returns the disk usage of images and writable layers.
pub async fn fs_info(store: &ImageStore) -> ImageFsInfoResponse {
    store.measure_all_layers().await;
    let usage = store.usage();
    ImageFsInfoResponse {
        image_filesystems: vec![filesystem(&usage.image)],
        container_filesystems: vec![filesystem(&usage.containers)],
    }
}

fn filesystem(usage: &FsUsage) -> FilesystemUsage {
    FilesystemUsage {
        timestamp: usage.at,
        fs_id: Some(FilesystemIdentifier { mountpoint: usage.mountpoint.display().to_string() }),
        used_bytes: Some(UInt64Value { value: usage.bytes }),
        inodes_used: Some(UInt64Value { value: usage.inodes }),
    }
}

fn cri_image(image: &Image) -> CriImage {
    let (uid, username) = image_user(&image.config.user);
    CriImage {
        id: image.id.to_string(),
        repo_tags: image.repo_tags.clone(),
        repo_digests: image.repo_digests.clone(),
        size: image.size,
        uid,
        username,
        spec: Some(ImageSpec { image: image.id.to_string(), ..ImageSpec::default() }),
        pinned: image.pinned,
    }
}

/// Returns the image of a container under its name for people (`ContainerStatus.image`, which Kubernetes shows): the
/// name that the author of the pod wrote, if the client sends it; else a tag, since the client may send the id that a
/// pull returned.
#[must_use]
pub fn shown(requested: &ImageSpec, image: &Image) -> ImageSpec {
    let matching_tag = |name: &str| {
        let reference = name.parse::<Reference>().ok()?;
        let tagged = format!("{}:{}", reference.name(), reference.tag()?);
        image.repo_tags.iter().find(|tag| **tag == tagged).cloned()
    };
    let name = match requested.user_specified_image.as_str() {
        "" => matching_tag(&requested.image).or_else(|| image.repo_tags.first().cloned()),
        name => Some(name.to_owned()),
    };
    ImageSpec { image: name.unwrap_or_else(|| requested.image.clone()), ..requested.clone() }
}

/// Returns the user of an image as a number or a name, without its group (CRI `Image.uid`, `Image.username`).
fn image_user(user: &str) -> (Option<Int64Value>, String) {
    let name = user.split_once(':').map_or(user, |(name, _group)| name);
    match name.parse::<u32>() {
        Ok(uid) => (Some(Int64Value { value: uid.into() }), String::new()),
        Err(_) => (None, Printable::new(name).to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_shown_by_the_name_that_people_gave_it() {
        let tags = ["docker.io/library/busybox:1.36", "docker.io/library/busybox:latest"];
        let id = berth_image::Digest::of(berth_image::Algorithm::Sha256, b"image");
        let image = |repo_tags: &[&str]| Image {
            id: id.clone(),
            repo_tags: repo_tags.iter().map(|&tag| tag.to_owned()).collect(),
            repo_digests: Vec::new(),
            size: 0,
            config: berth_image::ImageConfig::default(),
            layers: Vec::new(),
            pinned: false,
            artifact: false,
            manifests: Vec::new(),
            checkpoint: false,
        };
        let named = |name: &str, by_user: &str| ImageSpec {
            image: name.to_owned(),
            user_specified_image: by_user.to_owned(),
            ..ImageSpec::default()
        };
        let id = id.to_string();
        assert_eq!(shown(&named(&id, "busybox:mine"), &image(&tags)).image, "busybox:mine");
        assert_eq!(shown(&named(&id, ""), &image(&tags)).image, tags[0]);
        assert_eq!(shown(&named("docker.io/library/busybox", ""), &image(&tags)).image, tags[1]);
        assert_eq!(shown(&named("other.test/name:1", ""), &image(&tags)).image, tags[0], "by an alias");
        assert_eq!(shown(&named(&id, ""), &image(&[])).image, id);
    }

    #[test]
    fn the_user_of_an_image_is_a_number_or_a_name() {
        assert_eq!(image_user("1002"), (Some(Int64Value { value: 1002 }), String::new()));
        assert_eq!(image_user("1002:50"), (Some(Int64Value { value: 1002 }), String::new()));
        assert_eq!(image_user("www-data:www"), (None, "www-data".to_owned()));
        assert_eq!(image_user(""), (None, String::new()));
        assert_eq!(image_user("-1"), (None, "-1".to_owned()), "not a valid user id");
        assert_eq!(image_user("a\u{1b}[2J\u{202e}"), (None, "a\\u{1b}[2J\\u{202e}".to_owned()));
    }
}
