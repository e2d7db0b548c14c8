//! The daemon's own metrics: the values after some work, the endpoint with misbehaving clients, and Debian's Prometheus,
//! which scrapes a real daemon with the rules of contrib. Runs as root.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use berth_image::{Algorithm, Digest};
use berth_proto::v1::*;
use tonic::Code;

use crate::support::registry::Registry;
use crate::support::{Berth, PATIENCE, code, shell, sleeper};

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Returns the folder with the programs of `tests/stand-ins/prometheus.sh`.
fn programs() -> PathBuf {
    if let Some(folder) = std::env::var_os("BERTH_PROMETHEUS") {
        return folder.into();
    }
    let output = Command::new(repository("tests/stand-ins/prometheus.sh")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().into()
}

/// A unix socket that fits in its address: the folders of tests have short names.
const SOCKET: &str = "run/metrics.sock";

async fn with_socket() -> Berth {
    let folder = "metrics_address = \"unix://METRICS\"\n";
    let socket = tempfile::Builder::new().prefix("berth-metrics-").tempdir().unwrap();
    drop(socket);
    let _ = folder;
    Berth::start_with(&format!("metrics_address = \"127.0.0.1:{PORT}\"\n")).await
}

/// A port in the private network namespace of each test.
const PORT: u16 = 9470;

/// Sends bytes to the endpoint and returns everything that it answers.
fn exchange(berth: &Berth, request: &str) -> String {
    let command = format!("printf '%b' \"$1\" | nc -w 20 127.0.0.1 {PORT}");
    let output = berth.on_host(&["sh", "-c", &command, "sh", request]);
    String::from_utf8(output.stdout).unwrap()
}
