//! The same layers, packed and unpacked by GNU tar.

use super::*;

/// Packs a folder with GNU tar.
fn gnu_tar(folder: &Path, options: &[&str]) -> Vec<u8> {
    let output =
        Command::new("tar").args(options).arg("-C").arg(folder).args(["-cf", "-", "."]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

#[test]
fn all_formats_of_gnu_tar_are_unpacked() {
    let source = tempfile::tempdir().unwrap();
    let deep = source.path().join("deep/".repeat(60));
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("n".repeat(200)), "long").unwrap();
    std::os::unix::fs::symlink("t".repeat(300), source.path().join("link")).unwrap();
    let holes = fs::File::create(source.path().join("holes")).unwrap();
    for piece in 0..60u64 {
        std::os::unix::fs::FileExt::write_at(&holes, &[7; 4096], piece * 1_048_576).unwrap();
    }
    holes.set_len(70 << 20).unwrap();
    drop(holes);
    let formats: [&[&str]; 6] = [
        &["--format=gnu"],
        &["--format=posix"],
        &["--format=gnu", "--sparse"],
        &["--format=posix", "--sparse", "--sparse-version=1.0"],
        &["--format=posix", "--sparse", "--sparse-version=0.1"],
        &["--format=posix", "--sparse", "--sparse-version=0.0"],
    ];
    for options in formats {
        let sandbox = Sandbox::new();
        let archive = gnu_tar(source.path(), options);
        let outcome = sandbox.unpack(&archive).unwrap_or_else(|error| panic!("{options:?}: {error}"));
        assert_eq!(outcome.length, u64::try_from(archive.len()).unwrap());
        assert!(sandbox.rebuild() == archive, "{options:?}: the rebuilt archive differs");
        assert_same(source.path(), &sandbox.path(""), options);
        if options.contains(&"--sparse") {
            assert!(sandbox.stat("holes").blocks() < 4096, "{options:?}: the holes are filled");
        }
    }
}

/// Returns all paths below a folder with their metadata and content.
fn tree(folder: &Path) -> BTreeMap<PathBuf, (u32, u32, u64, i64, Vec<u8>)> {
    let mut found = BTreeMap::new();
    let mut pending = vec![folder.to_owned()];
    while let Some(path) = pending.pop() {
        let stat = fs::symlink_metadata(&path).unwrap();
        let mut content = Vec::new();
        if stat.is_file() {
            fs::File::open(&path).unwrap().read_to_end(&mut content).unwrap();
        } else if stat.is_symlink() {
            content = fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes();
        } else if stat.is_dir() {
            pending.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        let length = if stat.is_dir() { 0 } else { stat.len() };
        let name = path.strip_prefix(folder).unwrap().to_owned();
        found.insert(name, (stat.mode(), stat.uid(), length, stat.mtime(), content));
    }
    found
}

fn assert_same(expected: &Path, found: &Path, context: &[&str]) {
    let (expected, found) = (tree(expected), tree(found));
    assert_eq!(expected.keys().collect::<Vec<_>>(), found.keys().collect::<Vec<_>>(), "{context:?}");
    for (name, is) in expected {
        assert!(found[&name] == is, "{context:?}: {} differs", name.display());
    }
}

/// A plain entry: name, kind, content or mode.
type Plain = (String, u8, u8);

/// Returns a layer without conflicting entries, which all programs unpack in the same way.
fn plain_layer(entries: &[Plain]) -> (Layer, BTreeMap<String, u8>) {
    let (mut layer, mut kinds) = (Layer::default(), BTreeMap::<String, u8>::new());
    for (name, kind, detail) in entries {
        let parents: Vec<&str> = name.match_indices('/').map(|(slash, _)| &name[..slash]).collect();
        let beneath = format!("{name}/");
        let blocked = parents.iter().any(|parent| kinds.get(*parent).is_some_and(|kind| *kind != 0))
            // A file that another entry replaces cannot be rebuilt.
            || kinds.get(name).is_some_and(|former| *former != *kind || *kind == 1)
            || (*kind != 0 && kinds.keys().any(|path| path.starts_with(&beneath)));
        let target =
            kinds.iter().find(|(other, kind)| **kind == 1 && *other != name).map(|(name, _)| name.clone());
        if blocked {
            continue;
        }
        layer = match (kind, target) {
            (0, _) => layer.folder(name),
            (1, _) => layer.file(name, &"x".repeat(usize::from(*detail) * 7)),
            (2, _) => layer.symlink(name, "nowhere"),
            (3, Some(target)) if !kinds.contains_key(name) => layer.link(name, &target),
            (4, _) if !kinds.contains_key(name) => {
                let (folder, base) = name.rsplit_once('/').unwrap_or((".", name));
                layer = layer.file(&format!("{folder}/.wh.{base}"), "");
                kinds.insert(format!("{folder}/.wh.{base}"), 9);
                continue;
            }
            _ => continue,
        };
        kinds.insert(name.clone(), if *kind == 3 { 1 } else { *kind });
    }
    (layer, kinds)
}

/// Applies the whiteout rules to a folder into which the markers were unpacked as files.
fn apply_whiteouts(root: &Path) {
    let markers: Vec<PathBuf> = tree(root)
        .into_keys()
        .filter(|path| path.file_name().is_some_and(|name| name.as_bytes().starts_with(b".wh.")))
        .collect();
    for marker in markers {
        let marker = root.join(marker);
        fs::remove_file(&marker).unwrap();
        let hidden = marker.file_name().unwrap().to_str().unwrap().trim_start_matches(".wh.").to_owned();
        let hidden = marker.with_file_name(hidden);
        match fs::symlink_metadata(&hidden) {
            Ok(stat) if stat.is_dir() => {
                rustix::fs::lsetxattr(
                    &hidden,
                    "trusted.overlay.opaque",
                    b"y",
                    rustix::fs::XattrFlags::empty(),
                )
                .unwrap();
            }
            Ok(_) => {}
            Err(_) => {
                rustix::fs::mknodat(
                    rustix::fs::CWD,
                    &hidden,
                    rustix::fs::FileType::CharacterDevice,
                    Mode::empty(),
                    0,
                )
                .unwrap();
            }
        }
    }
}

/// Returns the tree without metadata that programs may choose, and with opaque folders marked.
fn comparable(root: &Path) -> BTreeMap<PathBuf, (u32, u64, Vec<u8>, bool)> {
    tree(root)
        .into_iter()
        .map(|(name, (mode, _, length, _, content))| {
            let mut value = [0_u8; 8];
            let opaque =
                rustix::fs::lgetxattr(root.join(&name), "trusted.overlay.opaque", &mut value[..]).is_ok();
            (name, (mode, length, content, opaque))
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn the_result_is_that_of_gnu_tar_with_the_whiteout_rules(
        entries in proptest::collection::vec(("[abc](/[abc]){0,3}", 0u8..5, any::<u8>()), 1..25),
    ) {
        let archive = plain_layer(&entries).0.end();
        let sandbox = Sandbox::new();
        sandbox.unpack(&archive).unwrap();
        prop_assert!(sandbox.rebuild() == archive);
        let other = tempfile::tempdir().unwrap();
        let file = other.path().join("layer.tar");
        let root = other.path().join("fs");
        fs::write(&file, &archive).unwrap();
        fs::create_dir(&root).unwrap();
        let output = Command::new("tar").arg("-xpf").arg(&file).arg("-C").arg(&root).output().unwrap();
        prop_assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        apply_whiteouts(&root);
        prop_assert_eq!(comparable(&sandbox.path("")), comparable(&root));
    }
}
