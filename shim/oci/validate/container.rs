//! The config of a container.

use berth_image::ImageConfig;
use berth_proto::v1::{ContainerConfig, Mount};

use super::modes;
use super::text::{TEXT, absolute, log_path, maps, path_text, required, text};
use crate::oci::{self, Result, error, normal, user_request};

/// Checks a container's config.
///
/// # Errors
/// The first invalid field.
pub fn container(config: &ContainerConfig) -> Result<()> {
    let metadata = config.metadata.as_ref().ok_or_else(|| error("config.metadata", "is missing"))?;
    required("metadata.name", &metadata.name)?;
    let image = config.image.as_ref().map(|image| image.image.as_str()).unwrap_or_default();
    required("image.image", image)?;
    maps(&config.labels, &config.annotations)?;
    log_path(&config.log_path)?;
    path_text("working_dir", &config.working_dir)?;
    for (field, values) in [("command", &config.command), ("args", &config.args)] {
        for value in values {
            text(field, value, TEXT)?;
        }
    }
    for variable in &config.envs {
        let field = format!("envs[{}]", variable.key);
        if variable.key.is_empty() || variable.key.contains(['=', '\0']) {
            return Err(error(field, "is not a variable name"));
        }
        let value = std::str::from_utf8(&variable.value).map_err(|_| error(&field, "is not UTF-8"))?;
        text(&field, value, TEXT)?;
    }
    if config.windows.is_some() {
        return Err(error("windows", "is not supported on Linux"));
    }
    let security = oci::security(config);
    security.namespace_options.as_ref().map_or(Ok(()), |options| modes(options, true))?;
    // The ids of the request are checked independently of the image.
    user_request(config, &ImageConfig::default())?;
    config.mounts.iter().try_for_each(mount)?;
    for device in &config.devices {
        absolute("devices.host_path", &device.host_path)?;
        absolute("devices.container_path", &device.container_path)?;
    }
    Ok(())
}

fn mount(mount: &Mount) -> Result<()> {
    let field = format!("mounts[{}]", mount.container_path);
    absolute("mounts.container_path", &mount.container_path)?;
    if normal(&mount.container_path) == "/" {
        return Err(error(field, "is the root of the container"));
    }
    if mount.image.as_ref().is_some_and(|image| !image.image.is_empty()) {
        return Ok(());
    }
    absolute(&format!("{field}.host_path"), &mount.host_path)
}
