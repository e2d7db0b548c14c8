//! Limits on the memory that a layer can make the daemon use.

use std::time::{Duration, SystemTime};

use tar::EntryType;

use super::tests::{Layer, Sandbox};
use crate::error::ErrorKind;
use crate::unpack::Limits;

fn limits() -> Limits {
    Limits { notes: 64 << 10, bytes: 1 << 20, ..Limits::default() }
}

#[test]
fn links_and_folders_that_need_other_layers_are_limited() {
    let target = format!("{}b", "a".repeat(100) + "/").repeat(30);
    let mut links = Layer::default();
    let mut folders = Layer::default();
    for number in 0..400 {
        links = links.pax(&[("linkpath", &target)]).link(&format!("l/{number}"), "x");
        folders = folders.file(&format!("{number}/a/b/c/d/e/f/file"), "");
    }
    for (layer, words) in
        [(links.end(), "hard links"), (folders.end(), "folders that the layer does not list")]
    {
        let limits = Limits { bytes: 64 << 20, ..limits() };
        let error = Sandbox::new().unpack_within(&layer, limits).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::LimitExceeded, "{error}");
        let text = error.to_string();
        assert!(text.contains("more than 65536 bytes of memory") && text.contains(words), "{text}");
    }
    // Listed folders and replaced links take no memory.
    let mut layer = Layer::default();
    for number in 0..2000 {
        layer = layer.link("l", &format!("elsewhere/{number}"));
        layer = layer.file(&format!("{number}/a"), "").folder(&number.to_string());
    }
    let outcome = Sandbox::new().unpack_within(&layer.end(), Limits { bytes: 64 << 20, ..limits() }).unwrap();
    assert_eq!((outcome.implicit.len(), outcome.links.len()), (1, 1));
}

#[test]
fn removing_a_folder_removes_its_links() {
    let layer =
        Layer::default().link("d/l", "elsewhere/x").link("e", "elsewhere/x").file("d", "a file").end();
    let outcome = Sandbox::new().unpack(&layer).unwrap();
    let links: Vec<_> = outcome.links.into_keys().map(String::from).collect();
    assert_eq!(links, ["e"]);
}

#[test]
fn the_times_of_any_number_of_folders_are_set() {
    let sandbox = Sandbox::new();
    let mut layer = Layer::default();
    let name = |number: u64| format!("{number:04}-{}", "x".repeat(80));
    for number in 0..4000 {
        layer = layer.raw(&name(number), EntryType::Directory, "", b"", |header| header.set_mtime(number));
        layer = layer.file(&format!("{}/f", name(number)), "");
    }
    sandbox.unpack_within(&layer.end(), Limits { bytes: 64 << 20, ..limits() }).unwrap();
    for number in 0..4000 {
        let time = sandbox.stat(&name(number)).modified().unwrap();
        assert_eq!(time, SystemTime::UNIX_EPOCH + Duration::from_secs(number));
    }
}

#[test]
fn holes_count_as_bytes() {
    let sparse = |size: &str| {
        [
            ("GNU.sparse.major", "0"),
            ("GNU.sparse.minor", "1"),
            ("GNU.sparse.size", size),
            ("GNU.sparse.map", "0,3"),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
    };
    let layer = |count: usize| {
        let mut layer = Layer::default();
        for number in 0..count {
            let records = sparse("400000");
            let records = records.each_ref().map(|(key, value)| (key.as_str(), value.as_str()));
            layer = layer.pax(&records).file(&number.to_string(), "abc");
        }
        layer.end()
    };
    let sandbox = Sandbox::new();
    sandbox.unpack_within(&layer(2), limits()).unwrap();
    assert_eq!(sandbox.stat("1").len(), 400_000);
    let error = Sandbox::new().unpack_within(&layer(3), limits()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LimitExceeded, "{error}");
    assert!(error.to_string().contains("1048576 bytes"), "{error}");
}
