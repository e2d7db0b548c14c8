//! Builders of layers, and a folder into which they are unpacked.

use super::*;

/// A folder that contains a layer's folder. Anything else that appears in it has escaped.
pub(in crate::unpack) struct Sandbox {
    folder: tempfile::TempDir,
}

impl Sandbox {
    pub(in crate::unpack) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("fs")).unwrap();
        fs::write(folder.path().join("secret"), "untouched").unwrap();
        Self { folder }
    }

    pub(in crate::unpack) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("fs").join(name)
    }

    pub(in crate::unpack) fn unpack(&self, archive: &[u8]) -> Result<Outcome, Error> {
        self.unpack_within(archive, Limits::default())
    }

    pub(in crate::unpack) fn unpack_within(&self, archive: &[u8], limits: Limits) -> Result<Outcome, Error> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let root = rustix::fs::open(self.path(""), flags, Mode::empty()).unwrap();
        let recipe = fs::File::create(self.folder.path().join("recipe")).unwrap();
        let outcome = extract("layer", archive, root, Algorithm::Sha256, &Budget::new(limits), Some(recipe));
        let mut around: Vec<_> =
            fs::read_dir(self.folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        around.sort();
        assert_eq!(around, ["fs", "recipe", "secret"], "something escaped");
        let secret = fs::symlink_metadata(self.folder.path().join("secret")).unwrap();
        assert_eq!(
            (secret.len(), secret.nlink(), secret.uid()),
            (9, 1, 0),
            "a file beside the layer was changed"
        );
        outcome
    }

    /// Rebuilds the archive that was unpacked.
    pub(in crate::unpack) fn rebuild(&self) -> Vec<u8> {
        let recipe = fs::File::open(self.folder.path().join("recipe")).unwrap();
        let root = fs::File::open(self.path("")).unwrap();
        let mut archive = Vec::new();
        crate::unpack::rebuild(recipe, root.as_fd(), &mut archive).unwrap();
        archive
    }

    pub(in crate::unpack) fn stat(&self, name: &str) -> fs::Metadata {
        fs::symlink_metadata(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    pub(in crate::unpack) fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    pub(in crate::unpack) fn xattr(&self, name: &str, attribute: &str) -> Option<Vec<u8>> {
        let mut value = vec![0; 256];
        let length = lgetxattr(self.path(name), attribute, &mut value[..]).ok()?;
        value.truncate(length);
        Some(value)
    }

    pub(in crate::unpack) fn is_whiteout(&self, name: &str) -> bool {
        let stat = self.stat(name);
        stat.file_type().is_char_device() && stat.rdev() == 0
    }
}

#[derive(Default)]
pub(in crate::unpack) struct Layer(Vec<u8>);

impl Layer {
    pub(in crate::unpack) fn raw(
        mut self,
        name: &str,
        kind: EntryType,
        link: &str,
        data: &[u8],
        change: impl Fn(&mut Header),
    ) -> Self {
        let mut header = Header::new_ustar();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000_000);
        header.set_size(data.len().try_into().unwrap());
        change(&mut header);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(in crate::unpack) fn folder(self, name: &str) -> Self {
        self.raw(name, EntryType::Directory, "", b"", |_| ())
    }

    pub(in crate::unpack) fn file(self, name: &str, text: &str) -> Self {
        self.raw(name, EntryType::Regular, "", text.as_bytes(), |_| ())
    }

    pub(in crate::unpack) fn symlink(self, name: &str, target: &str) -> Self {
        self.raw(name, EntryType::Symlink, target, b"", |_| ())
    }

    pub(in crate::unpack) fn link(self, name: &str, target: &str) -> Self {
        self.raw(name, EntryType::Link, target, b"", |_| ())
    }

    pub(in crate::unpack) fn pax(self, records: &[(&str, &str)]) -> Self {
        let mut builder = Builder::new(Vec::new());
        builder.append_pax_extensions(records.iter().map(|(key, value)| (*key, value.as_bytes()))).unwrap();
        let mut bytes = builder.into_inner().unwrap();
        bytes.truncate(bytes.len() - 1024);
        Self([self.0, bytes].concat())
    }

    pub(in crate::unpack) fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}
