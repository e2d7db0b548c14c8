//! docs/security.md names only tests that exist, and every test of this folder.

use std::collections::BTreeSet;

const DOCUMENT: &str = include_str!("../../../docs/security.md");

/// The sources of the tests that the document names, by the word before `::`.
const SOURCES: [(&str, &str); 29] = [
    ("attacks", include_str!("exchange.rs")),
    ("attacks", include_str!("exhaustion.rs")),
    ("attacks", include_str!("identity.rs")),
    ("attacks", include_str!("images.rs")),
    ("attacks", include_str!("mounts.rs")),
    ("attacks", include_str!("network.rs")),
    ("attacks", include_str!("processes.rs")),
    ("attacks", include_str!("requests.rs")),
    ("attacks", include_str!("root.rs")),
    ("attacks", include_str!("sockets.rs")),
    ("checkpoint", include_str!("../checkpoint.rs")),
    ("containers", include_str!("../containers.rs")),
    ("image_volumes", include_str!("../image_volumes.rs")),
    ("logs", include_str!("../logs.rs")),
    ("mount_rights", include_str!("../mount_rights.rs")),
    ("mounts", include_str!("../mounts.rs")),
    ("network_paths", include_str!("../network_paths.rs")),
    ("network_upkeep::repair", include_str!("../network_upkeep/repair.rs")),
    ("pod_checkpoint::failures", include_str!("../pod_checkpoint/failures.rs")),
    ("pod_files", include_str!("../pod_files.rs")),
    ("pods", include_str!("../pods.rs")),
    ("registry", include_str!("../registry.rs")),
    ("restart", include_str!("../restart.rs")),
    ("restore", include_str!("../restore.rs")),
    ("seccomp", include_str!("../seccomp.rs")),
    ("server", include_str!("../server.rs")),
    ("sessions::terminals", include_str!("../sessions/terminals.rs")),
    ("streaming::requests", include_str!("../streaming/requests.rs")),
    ("userns", include_str!("../userns.rs")),
];

/// Returns the test functions of a source file as `file::name`.
fn tests_of(file: &str, source: &str) -> BTreeSet<String> {
    let after = source.split("#[tokio::test").skip(1);
    let names = after.filter_map(|rest| rest.split_once("fn ")?.1.split_once('('));
    names.map(|(name, _)| format!("{file}::{name}")).collect()
}

#[test]
fn security_md_names_every_attack_test_and_only_existing_tests() {
    let known: BTreeSet<String> = SOURCES.iter().flat_map(|(file, source)| tests_of(file, source)).collect();
    let quoted = DOCUMENT.split('`').skip(1).step_by(2);
    let named: BTreeSet<String> =
        quoted.filter(|text| text.contains("::") && !text.ends_with("::")).map(str::to_owned).collect();
    let unknown: Vec<_> = named.difference(&known).collect();
    assert!(unknown.is_empty(), "docs/security.md names tests that do not exist: {unknown:?}");
    let missing: Vec<_> =
        known.iter().filter(|name| name.starts_with("attacks::") && !named.contains(*name)).collect();
    assert!(missing.is_empty(), "docs/security.md does not name {missing:?}");
}
