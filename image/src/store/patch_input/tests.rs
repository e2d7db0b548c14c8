use super::*;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::PathBuf;

fn path(text: &str) -> TreePath {
    TreePath::parse(text.as_bytes()).unwrap()
}

/// A lower layer, the layer to patch above it, and the folder of the patch.
struct Layers {
    _folder: tempfile::TempDir,
    top: PathBuf,
    lower: PathBuf,
    patch: PathBuf,
}

fn layers() -> Layers {
    let folder = tempfile::tempdir().unwrap();
    let create = |name: &str| {
        let path = folder.path().join(name);
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    };
    let (top, lower, patch) = (create("top"), create("lower"), create("patch"));
    Layers { _folder: folder, top, lower, patch }
}

impl Layers {
    fn build(&self, record: &LayerRecord) -> Result<bool, Error> {
        self.build_within(record, 1 << 20)
    }

    fn build_within(&self, record: &LayerRecord, limit: u64) -> Result<bool, Error> {
        let mut merged = Merged::new(1 << 20);
        record.implicit.iter().for_each(|path| merged.expect(path).unwrap());
        merged.push(&self.lower)?;
        let merged = RefCell::new(merged);
        let input = PatchInput::new("layer test", &self.top, &merged, record, limit)?;
        input.build(&self.patch)?;
        input.is_needed()
    }
}

#[test]
fn unlisted_folders_keep_the_metadata_from_below() {
    let layers = layers();
    fs::create_dir_all(layers.lower.join("srv/data")).unwrap();
    fs::set_permissions(layers.lower.join("srv/data"), fs::Permissions::from_mode(0o1777)).unwrap();
    fs::create_dir_all(layers.top.join("srv/data")).unwrap();
    fs::write(layers.top.join("srv/data/file"), "x").unwrap();
    let implicit = ["srv", "srv/data"].map(path).into();
    let record = LayerRecord { implicit, ..LayerRecord::default() };
    assert!(layers.build(&record).unwrap());
    assert_eq!(fs::metadata(layers.patch.join("srv/data")).unwrap().mode() & 0o7777, 0o1777);
    assert_eq!(fs::metadata(layers.patch.join("srv")).unwrap().mode() & 0o7777, 0o755);
    assert!(!layers.patch.join("srv/data/file").exists());
}

#[test]
fn an_unlisted_opaque_folder_keeps_its_metadata_and_hides_its_content() {
    let layers = layers();
    fs::create_dir_all(layers.lower.join("srv/data/deeper")).unwrap();
    for name in ["srv/data", "srv/data/deeper"] {
        fs::set_permissions(layers.lower.join(name), fs::Permissions::from_mode(0o1777)).unwrap();
    }
    fs::create_dir_all(layers.top.join("srv/data/deeper")).unwrap();
    let emptied = fs::File::open(layers.top.join("srv/data")).unwrap();
    rustix::fs::fsetxattr(&emptied, "trusted.overlay.opaque", b"y", rustix::fs::XattrFlags::empty()).unwrap();
    let implicit = ["srv", "srv/data", "srv/data/deeper"].map(path).into();
    let record = LayerRecord { implicit, ..LayerRecord::default() };
    assert!(layers.build(&record).unwrap());
    assert_eq!(fs::metadata(layers.patch.join("srv/data")).unwrap().mode() & 0o7777, 0o1777);
    assert!(
        !layers.patch.join("srv/data/deeper").exists(),
        "it is new and does not have the metadata of the old one"
    );
    let mut value = [0; 1];
    let patched = fs::File::open(layers.patch.join("srv/data")).unwrap();
    assert!(rustix::fs::fgetxattr(&patched, "trusted.overlay.opaque", &mut value[..]).is_err());
}

#[test]
fn nothing_is_patched_if_all_is_the_same() {
    let layers = layers();
    fs::create_dir_all(layers.lower.join("usr/bin")).unwrap();
    fs::create_dir_all(layers.top.join("usr/bin")).unwrap();
    let record =
        LayerRecord { implicit: ["usr", "usr/bin", "new"].map(path).into(), ..LayerRecord::default() };
    fs::create_dir(layers.top.join("new")).unwrap();
    assert!(!layers.build(&record).unwrap());
}

#[test]
fn a_folder_that_is_a_link_below_stays_a_link() {
    let layers = layers();
    fs::create_dir_all(layers.lower.join("usr/lib")).unwrap();
    symlink("usr/lib", layers.lower.join("lib")).unwrap();
    fs::create_dir_all(layers.top.join("lib/modules")).unwrap();
    fs::write(layers.top.join("lib/modules/one.ko"), "one").unwrap();
    let implicit = ["lib", "lib/modules"].map(path).into();
    let links = [(path("lib/two.ko"), path("lib/modules/one.ko"))].into();
    let record = LayerRecord { implicit, links, ..LayerRecord::default() };
    assert!(layers.build(&record).unwrap());
    assert_eq!(fs::read_link(layers.patch.join("lib")).unwrap(), PathBuf::from("usr/lib"));
    assert_eq!(fs::read(layers.patch.join("usr/lib/modules/one.ko")).unwrap(), b"one");
    assert_eq!(fs::read(layers.patch.join("usr/lib/two.ko")).unwrap(), b"one");
}

#[test]
fn hard_links_reach_files_of_lower_layers() {
    let layers = layers();
    fs::create_dir_all(layers.lower.join("bin")).unwrap();
    fs::write(layers.lower.join("bin/busybox"), "box").unwrap();
    let links = [(path("bin/ls"), path("bin/busybox"))].into();
    let record = LayerRecord { links, ..LayerRecord::default() };
    assert!(layers.build(&record).unwrap());
    let inode = |path: PathBuf| fs::metadata(path).unwrap().ino();
    assert_eq!(inode(layers.patch.join("bin/ls")), inode(layers.lower.join("bin/busybox")));
    let links = [(path("bin/ls"), path("bin/none"))].into();
    let record = LayerRecord { links, ..LayerRecord::default() };
    assert!(matches!(layers.build(&record), Err(Error::Corrupt { .. })));
}

#[test]
fn links_below_cannot_lead_outside() {
    let layers = layers();
    let outside = tempfile::tempdir().unwrap();
    symlink(outside.path(), layers.lower.join("etc")).unwrap();
    fs::create_dir(layers.top.join("etc")).unwrap();
    fs::write(layers.top.join("etc/passwd"), "x").unwrap();
    let record = LayerRecord { implicit: [path("etc")].into(), ..LayerRecord::default() };
    layers.build(&record).unwrap();
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
}

#[test]
fn folders_that_move_are_limited() {
    let layers = layers();
    fs::create_dir(layers.lower.join("real")).unwrap();
    let mut record = LayerRecord::default();
    for number in 0..20 {
        let name = format!("link{number:02}");
        symlink("real", layers.lower.join(&name)).unwrap();
        fs::create_dir(layers.top.join(&name)).unwrap();
        record.implicit.insert(path(&name));
    }
    let error = layers.build_within(&record, 1000).unwrap_err();
    assert!(
        error.to_string().contains("8 folders that are links in the layers below take more than 1000 bytes"),
        "{error}"
    );
}
