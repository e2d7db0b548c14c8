//! The format of a vendor's CDI file (CDI specification, "CDI JSON Specification").

use std::path::Path;

use serde::Deserialize;

/// The newest supported major version of the format. Minor versions only add fields.
const MAJOR: u32 = 1;

/// The longest file that is read, in bytes.
const LONGEST: u64 = 4 << 20;

/// A CDI file.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct File {
    cdi_version: String,
    /// The vendor and class of the devices, as in `vendor.com/class`.
    pub(super) kind: String,
    #[serde(default)]
    pub(super) devices: Vec<Device>,
    /// The edits for every container that uses one of the devices.
    #[serde(default, rename = "containerEdits")]
    pub(super) edits: Edits,
}

/// A device that containers can request.
#[derive(Debug, Deserialize)]
pub(super) struct Device {
    pub(super) name: String,
    #[serde(default, rename = "containerEdits")]
    pub(super) edits: Edits,
}

/// The changes to a container's spec.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Edits {
    pub(super) env: Vec<String>,
    pub(super) device_nodes: Vec<DeviceNode>,
    pub(super) mounts: Vec<Mount>,
    pub(super) hooks: Vec<Hook>,
    pub(super) additional_gids: Vec<u32>,
    pub(super) intel_rdt: Option<serde::de::IgnoredAny>,
    pub(super) net_devices: Vec<NetDevice>,
}

/// A device node.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct DeviceNode {
    pub(super) path: String,
    pub(super) host_path: Option<String>,
    #[serde(rename = "type")]
    pub(super) kind: Option<String>,
    pub(super) major: Option<i64>,
    pub(super) minor: Option<i64>,
    pub(super) file_mode: Option<u32>,
    pub(super) permissions: Option<String>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
}

/// A mount that a device adds to the container.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Mount {
    pub(super) host_path: String,
    pub(super) container_path: String,
    #[serde(default)]
    pub(super) options: Vec<String>,
    #[serde(rename = "type")]
    pub(super) kind: Option<String>,
}

/// A hook: a program that runs at a point of the container's life.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Hook {
    pub(super) hook_name: String,
    pub(super) path: String,
    #[serde(default)]
    pub(super) args: Vec<String>,
    #[serde(default)]
    pub(super) env: Vec<String>,
    pub(super) timeout: Option<i64>,
}

/// A network interface that is moved into the pod.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct NetDevice {
    pub(super) host_interface_name: String,
}

/// Reads a CDI file. Returns none if the name's extension is not that of a CDI file.
pub(super) fn read(path: &Path) -> Option<Result<File, String>> {
    let json = match path.extension()?.to_str()? {
        "json" => true,
        "yaml" | "yml" => false,
        _ => return None,
    };
    Some(parse(path, json))
}

fn parse(path: &Path, json: bool) -> Result<File, String> {
    let length = std::fs::metadata(path).map_err(|error| error.to_string())?.len();
    if length > LONGEST {
        return Err(format!("longer than {LONGEST} bytes"));
    }
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    let file: File = match json {
        true => berth_json::from_str(&text).map_err(|error| error.to_string())?,
        false => parse_yaml(&text)?,
    };
    let major =
        file.cdi_version.trim_start_matches('v').split('.').next().and_then(|major| major.parse().ok());
    match major {
        Some(0..=MAJOR) => {}
        _ => return Err(format!("unsupported version {:?}", file.cdi_version)),
    }
    if !is_kind(&file.kind) {
        return Err(format!("invalid kind {:?}", file.kind));
    }
    match file.devices.iter().find(|device| !is_device(&device.name)) {
        Some(device) => Err(format!("invalid device name {:?}", device.name)),
        None => Ok(file),
    }
}

/// Parses YAML 1.1, which containerd and CRI-O read: a number that begins with 0 is octal (yaml.org/type/int.html).
/// File modes are written like that.
fn parse_yaml(text: &str) -> Result<File, String> {
    let options = serde_saphyr::options! { legacy_octal_numbers: true };
    let read = serde_saphyr::with_deserializer_from_str_with_options(text, options, |deserializer| {
        File::deserialize(berth_json::NullIsAbsent(deserializer))
    });
    read.map_err(|error| error.to_string())
}

/// Whether the text is `vendor/class`, each of letters, digits, `_`, `-` and `.`.
pub(super) fn is_kind(text: &str) -> bool {
    let part = |text: &str| {
        text.starts_with(|c: char| c.is_ascii_alphabetic())
            && text.ends_with(|c: char| c.is_ascii_alphanumeric())
            && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'))
    };
    text.split_once('/').is_some_and(|(vendor, class)| part(vendor) && part(class))
}

/// Whether the text is a device name: letters, digits, `_`, `-`, `.` and `:`.
pub(super) fn is_device(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | ':'))
}
