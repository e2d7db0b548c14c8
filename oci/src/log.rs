//! The log file. containerd, podman and CRI-O read the reason of a failure from its last line.

use std::fs::OpenOptions;
use std::io::Write;

use crate::arguments::{Global, LogFormat};

/// Reports an error on standard error and in the log file.
pub(crate) fn error(global: &Global, message: &str) {
    eprintln!("berth-oci: {message}");
    write(global, "error", message);
}

/// Reports a failure that does not make the command fail.
pub(crate) fn warning(global: &Global, message: &str) {
    eprintln!("berth-oci: {message}");
    write(global, "warning", message);
}

fn write(global: &Global, level: &str, message: &str) {
    let Some(path) = &global.log else { return };
    let time = jiff::Timestamp::now();
    let line = match global.log_format {
        LogFormat::Json => {
            serde_json::json!({ "level": level, "msg": message, "time": time.to_string() }).to_string()
        }
        LogFormat::Text => format!("time=\"{time}\" level={level} msg={message:?}"),
    };
    let file = OpenOptions::new().append(true).create(true).open(path);
    if let Err(error) = file.and_then(|mut file| writeln!(file, "{line}")) {
        eprintln!("berth-oci: failed to write {}: {error}", path.display());
    }
}
