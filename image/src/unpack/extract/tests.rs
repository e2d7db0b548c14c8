//! Layers as builders and attackers create them. They run as root: owners and devices are part of a layer.

mod builder;
mod gnu_tar;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Cursor, Read as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use proptest::prelude::*;
use rustix::fs::{Mode, OFlags, lgetxattr};
use tar::{Builder, EntryType, Header};

pub(super) use self::builder::{Layer, Sandbox};
use super::*;
use crate::error::ErrorKind;
use crate::unpack::{Limits, OPAQUE};

#[test]
fn all_metadata_of_a_layer_is_set() {
    let sandbox = Sandbox::new();
    let layer = Layer::default()
        .raw("./", EntryType::Directory, "", b"", |header| header.set_mode(0o711))
        .raw("d/", EntryType::Directory, "", b"", |header| header.set_mode(0o2775))
        .raw("d/setuid", EntryType::Regular, "", b"x", |header| {
            header.set_mode(0o4755);
            header.set_uid(1000);
            header.set_gid(50);
        })
        .link("d/second", "d/setuid")
        .symlink("s", "/nowhere")
        .raw("null", EntryType::Char, "", b"", |header| {
            header.set_device_major(1).unwrap();
            header.set_device_minor(3).unwrap();
            header.set_mode(0o666);
        })
        .raw("pipe", EntryType::Fifo, "", b"", |header| header.set_uid(7))
        .pax(&[
            ("SCHILY.xattr.user.note", "hello"),
            ("mtime", "1234567890.5"),
            ("SCHILY.xattr.trusted.overlay.redirect", "/x"),
        ])
        .file("noted", "text")
        .end();
    let outcome = sandbox.unpack(&layer).unwrap();
    assert_eq!(outcome.diff_id, Digest::of(Algorithm::Sha256, &layer));
    assert!(outcome.implicit.is_empty() && outcome.links.is_empty());
    assert_eq!(sandbox.stat("").mode() & 0o7777, 0o711);
    let folder = sandbox.stat("d");
    assert_eq!((folder.mode() & 0o7777, folder.mtime()), (0o2775, 1_000_000_000));
    let file = sandbox.stat("d/setuid");
    assert_eq!((file.mode() & 0o7777, file.uid(), file.gid(), file.nlink()), (0o4755, 1000, 50, 2));
    assert_eq!(file.ino(), sandbox.stat("d/second").ino());
    assert_eq!(fs::read_link(sandbox.path("s")).unwrap(), Path::new("/nowhere"));
    assert_eq!(sandbox.stat("s").mtime(), 1_000_000_000);
    let null = sandbox.stat("null");
    assert_eq!((null.rdev(), null.mode() & 0o7777), (makedev(1, 3), 0o666));
    assert!(sandbox.stat("pipe").file_type().is_fifo() && sandbox.stat("pipe").uid() == 7);
    assert_eq!(sandbox.xattr("noted", "user.note").as_deref(), Some(b"hello".as_slice()));
    assert_eq!(sandbox.xattr("noted", "trusted.overlay.redirect"), None);
    assert_eq!(
        (sandbox.stat("noted").mtime(), sandbox.stat("noted").mtime_nsec()),
        (1_234_567_890, 500_000_000)
    );
}

#[test]
fn later_entries_replace_earlier_ones() {
    let sandbox = Sandbox::new();
    let layer = Layer::default()
        .file("a", "first")
        .file("a", "second")
        .folder("b")
        .file("b/c", "x")
        .file("b", "file now")
        .symlink("l", "elsewhere")
        .folder("l")
        .file("l/x", "in a real folder")
        .file("e", "file")
        .folder("e")
        .end();
    sandbox.unpack(&layer).unwrap();
    assert_eq!((sandbox.text("a"), sandbox.text("b")), ("second".to_owned(), "file now".to_owned()));
    assert!(sandbox.stat("l").is_dir() && sandbox.stat("e").is_dir());
    assert_eq!(sandbox.text("l/x"), "in a real folder");
}

#[test]
fn whiteouts_become_those_of_overlayfs() {
    let sandbox = Sandbox::new();
    let layer = Layer::default()
        .folder("d")
        .file("d/.wh.gone", "")
        .folder("o")
        .file("o/.wh..wh..opq", "")
        .file(".wh..wh.plnk", "")
        // Removed and then created again: the new folder must hide the old one.
        .file(".wh.again", "")
        .folder("again")
        .file("again/x", "new")
        .folder("kept")
        .file(".wh.kept", "")
        .file("stays", "text")
        .file(".wh.stays", "")
        .file(".wh.implied", "")
        .file("implied/x", "new")
        .end();
    let outcome = sandbox.unpack(&layer).unwrap();
    assert!(sandbox.is_whiteout("d/gone"));
    for folder in ["o", "again", "kept", "implied"] {
        assert_eq!(sandbox.xattr(folder, OPAQUE).as_deref(), Some(b"y".as_slice()), "{folder}");
    }
    assert_eq!(sandbox.xattr("d", OPAQUE), None);
    assert_eq!((sandbox.text("again/x"), sandbox.text("stays")), ("new".to_owned(), "text".to_owned()));
    assert!(!sandbox.path(".wh..wh.plnk").exists() && !sandbox.path("o/.wh..wh..opq").exists());
    assert!(outcome.implicit.iter().all(TreePath::is_root), "{:?}", outcome.implicit);
    for name in [".wh.", "d/.wh..", "d/.wh..."] {
        let error = Sandbox::new().unpack(&Layer::default().file(name, "").end()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{name}");
    }
}

#[test]
fn dependencies_on_other_layers_are_reported() {
    let sandbox = Sandbox::new();
    let layer = Layer::default()
        .file("usr/lib/a", "x")
        .folder("usr")
        .link("usr/lib/b", "usr/share/elsewhere")
        .link("c", "usr/lib/a")
        .end();
    let outcome = sandbox.unpack(&layer).unwrap();
    let names: Vec<_> = outcome.implicit.into_iter().map(String::from).collect();
    assert_eq!(names, ["", "usr/lib"]);
    let links: Vec<_> =
        outcome.links.into_iter().map(|(path, target)| (String::from(path), String::from(target))).collect();
    assert_eq!(links, [("usr/lib/b".to_owned(), "usr/share/elsewhere".to_owned())]);
    assert_eq!(sandbox.stat("usr/lib/a").nlink(), 2);
}

#[test]
fn links_inside_the_layer_are_followed_within_it() {
    let sandbox = Sandbox::new();
    let layer = Layer::default()
        .folder("usr/lib")
        .symlink("lib", "usr/lib")
        .file("lib/a", "one")
        .symlink("abs", "/usr/lib")
        .file("abs/b", "two")
        .symlink("up", "../../../../..")
        .file("up/c", "three")
        .symlink("outside", "/etc")
        .file("outside/d", "four")
        .symlink("loop", "loop")
        .end();
    sandbox.unpack(&layer).unwrap();
    assert_eq!((sandbox.text("usr/lib/a"), sandbox.text("usr/lib/b")), ("one".to_owned(), "two".to_owned()));
    assert_eq!((sandbox.text("c"), sandbox.text("etc/d")), ("three".to_owned(), "four".to_owned()));
    assert!(!Path::new("/etc/d").exists());
    let error = Sandbox::new().unpack(&Layer::default().symlink("l", "l").file("l/x", "").end()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
}

#[test]
fn nothing_escapes_the_layer() {
    let refused = [
        Layer::default().file("../secret", "x"),
        Layer::default().file("a/../../secret", "x"),
        Layer::default().folder("..").file("a", "x"),
        Layer::default().link("a", "../secret"),
        Layer::default().pax(&[("path", "../secret")]).file("a", "x"),
        Layer::default().pax(&[("linkpath", "../secret")]).link("a", "b"),
        Layer::default().file("", "x"),
        Layer::default().file("f", "x").file("f/below", "x"),
        Layer::default().file("a", "x").link("a", "a"),
        Layer::default().folder("d").link("e", "d"),
        Layer::default().raw("u", EntryType::Regular, "", b"", |header| header.set_uid(u64::from(u32::MAX))),
    ];
    for (number, layer) in refused.into_iter().enumerate() {
        let error = Sandbox::new().unpack(&layer.end()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{number}: {error}");
    }
    let contained = [
        Layer::default().file("/secret", "x"),
        Layer::default().symlink("s", "../secret").file("s", "x"),
        Layer::default()
            .symlink("s", "../secret")
            .raw("s", EntryType::Regular, "", b"x", |header| header.set_uid(5)),
        Layer::default().symlink("d", "..").file("d/secret", "x"),
        Layer::default().symlink("s", "../secret").link("hard", "s"),
        Layer::default().symlink("d", "..").link("hard", "d/secret"),
        Layer::default().symlink("d", "..").file("d/.wh.secret", ""),
        Layer::default().symlink("d", "..").file("d/.wh..wh..opq", ""),
        Layer::default()
            .symlink("s", "../secret")
            .raw("s", EntryType::Directory, "", b"", |header| header.set_mode(0)),
        // The cached folder must not outlive its replacement by a link.
        Layer::default().folder("d").file("d/a", "x").symlink("d", "..").file("d/secret", "x"),
    ];
    for (number, layer) in contained.into_iter().enumerate() {
        let sandbox = Sandbox::new();
        sandbox.unpack(&layer.end()).unwrap_or_else(|error| panic!("{number}: {error}"));
    }
}

#[test]
fn limits_are_enforced() {
    let kinds =
        |layer: Layer, limits: Limits| Sandbox::new().unpack_within(&layer.end(), limits).unwrap_err().kind();
    let few = Limits { entries: 3, ..Limits::default() };
    assert_eq!(kinds(Layer::default().file("a/b/c/d", ""), few), ErrorKind::LimitExceeded);
    let shallow = Limits { depth: 3, ..Limits::default() };
    assert_eq!(kinds(Layer::default().file("a/b/c/d", ""), shallow), ErrorKind::LimitExceeded);
    // Links do not lead deeper than the limit.
    let stairs = Layer::default().folder("a/b/c").symlink("l", "a/b/c").file("l/d/e", "");
    assert_eq!(kinds(stairs, shallow), ErrorKind::LimitExceeded);
    let small = Limits { bytes: 4096, ..Limits::default() };
    assert_eq!(kinds(Layer::default().file("a", &"x".repeat(5000)), small), ErrorKind::LimitExceeded);
    let long = "x".repeat(300);
    let error =
        Sandbox::new().unpack(&Layer::default().pax(&[("path", &long)]).file("a", "").end()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
}

/// An entry of a malicious layer.
fn entry() -> impl Strategy<Value = (String, u8, String)> {
    let name = "(\\./|/|\\.\\./)?[abl](/[abl]|/\\.\\.|/\\.wh\\.[abl]|/\\.wh\\.\\.wh\\.\\.opq){0,3}/?";
    let target = "(/|\\.\\./|\\.\\./\\.\\./)?(secret|[abl]|[abl]/[abl]|\\.\\.|\\.|/)";
    (name, 0u8..7, target)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// For any names, types and links, the files beside the layer are unchanged (`Sandbox::unpack` checks
    /// this).
    #[test]
    fn no_order_of_entries_escapes(entries in proptest::collection::vec(entry(), 1..12)) {
        let sandbox = Sandbox::new();
        let mut layer = Layer::default();
        for (name, kind, target) in &entries {
            layer = match kind {
                0 | 1 => layer.file(name, "text"),
                2 => layer.folder(name),
                3 | 4 => layer.symlink(name, target),
                5 => layer.link(name, target),
                _ => layer.raw(name, EntryType::Fifo, "", b"", |header| header.set_uid(9)),
            };
        }
        drop(sandbox.unpack(&layer.end()));
    }

    /// A truncated or changed layer is an error or unpacks to something else. It never causes a panic or an
    /// escape.
    #[test]
    fn corrupt_layers_do_no_harm(at: prop::sample::Index, byte: u8, cut: bool) {
        let mut layer = Layer::default()
            .folder("d").file("d/a", "some text").symlink("l", "d").link("h", "d/a").pax(&[("path", "p")]).file("x", "y").end();
        let at = at.index(layer.len());
        if cut {
            layer.truncate(at);
        } else {
            layer[at] = byte;
        }
        drop(Sandbox::new().unpack(&layer));
    }
}

#[test]
fn a_reader_that_breaks_off_is_an_error() {
    struct Breaks(Cursor<Vec<u8>>);
    impl std::io::Read for Breaks {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            match self.0.read(buffer)? {
                0 => Err(std::io::Error::other(Error::unavailable("transfer", "broke off"))),
                read => Ok(read),
            }
        }
    }
    let sandbox = Sandbox::new();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let root = rustix::fs::open(sandbox.path(""), flags, Mode::empty()).unwrap();
    let source = std::io::BufReader::new(Breaks(Cursor::new(Layer::default().file("a", "b").end())));
    let error =
        extract("layer", source, root, Algorithm::Sha256, &Budget::new(Limits::default()), None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
}
