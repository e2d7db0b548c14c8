//! The options of the image store, from the configuration.

use berth_image::{Limits, Platform};

use crate::config::Config;

/// Returns the options of the image store.
#[must_use]
pub fn options(config: &Config) -> berth_image::Options {
    berth_image::Options {
        root: config.root.join("image"),
        certs_dirs: config.certs_dir.clone(),
        platform: Platform::default(),
        parallel_downloads: config.parallel_pulls,
        limits: Limits {
            bytes: config.max_image_size.bytes(),
            entries: config.max_image_files,
            depth: config.max_image_depth,
            ratio: config.max_compression_ratio,
            ..Limits::default()
        },
        registries_conf: Some(config.registries_conf.clone()),
        auth_files: config.auth_file.clone(),
        policy: Some(config.signature_policy.clone()),
        // The names were checked when the configuration was read.
        pinned: config.pinned_images.iter().filter_map(|name| name.parse().ok()).collect(),
        release_memory: berth_runtime::sys::memory::trim,
        project_quotas: Some(std::sync::Arc::new(crate::project_quota::KernelQuotas)),
        ..berth_image::Options::default()
    }
}
