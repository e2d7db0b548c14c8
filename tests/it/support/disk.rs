//! A small filesystem for one test. The test can fill it, freeze it or break it.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::PATIENCE;

/// The name of the mount point in the folder of a test.
pub const FOLDER: &str = "disk";

/// An ext4 filesystem in a file. Drop unmounts it.
pub struct Disk {
    folder: PathBuf,
}

/// A frozen filesystem (fsfreeze(8)): every write to it blocks. Drop thaws it. It thaws by itself after a time limit,
/// so that a test that is killed leaves nothing frozen.
pub struct Frozen {
    helper: Child,
}

impl Disk {
    pub fn make(parent: &Path, mebibytes: u64) -> Self {
        let (image, folder) = (parent.join("disk.img"), parent.join(FOLDER));
        File::create(&image).unwrap().set_len(mebibytes << 20).unwrap();
        fs::create_dir(&folder).unwrap();
        let image = image.display().to_string();
        // No blocks are reserved for root. After an error the filesystem is read-only.
        run("mkfs.ext4", &["-q", "-F", "-m", "0", "-e", "remount-ro", &image]);
        run("mount", &["-o", "loop", &image, &folder.display().to_string()]);
        Self { folder }
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Fills the disk to the last block.
    pub fn fill(&self) {
        let mut file = File::options().create(true).append(true).open(self.filler()).unwrap();
        for piece in [1 << 20, 4096, 1] {
            while file.write_all(&vec![0; piece]).is_ok() {}
        }
        // ext4 reserves blocks for delayed allocation. The sync releases those that it did not need.
        drop(file.sync_all());
        while file.write_all(&[0; 4096]).is_ok() {}
    }

    /// Frees the space that `fill` has taken.
    pub fn free(&self) {
        fs::remove_file(self.filler()).unwrap();
    }

    fn filler(&self) -> PathBuf {
        self.folder.join("filler")
    }

    /// Freezes the disk. It thaws after `longest` at the latest.
    pub fn freeze(&self, longest: Duration) -> Frozen {
        let script = format!(
            "fsfreeze --freeze \"$0\" && echo frozen && {{ read -t {} _ || true; }}; fsfreeze --unfreeze \"$0\"",
            longest.as_secs()
        );
        // Not every sh has `read -t`.
        let mut helper = Command::new("bash")
            .args(["-c", &script])
            .arg(&self.folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = [0; 7];
        std::io::Read::read_exact(helper.stdout.as_mut().unwrap(), &mut output).unwrap();
        Frozen { helper }
    }

    /// Triggers a filesystem error, after which ext4 is read-only.
    pub fn break_down(&self) {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mount = mounts.lines().find(|line| line.split(' ').nth(4) == self.folder.to_str()).unwrap();
        let device = mount.split_once(" - ext4 /dev/").unwrap().1.split(' ').next().unwrap();
        fs::write(format!("/sys/fs/ext4/{device}/trigger_fs_error"), "1").unwrap();
        let until = Instant::now() + PATIENCE;
        while fs::write(self.folder.join("probe"), "x").is_ok() {
            assert!(Instant::now() < until, "the disk stays writable after an error");
        }
    }
}

impl Frozen {
    /// Returns whether the filesystem is still frozen.
    pub fn is_frozen(&mut self) -> bool {
        self.helper.try_wait().unwrap().is_none()
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // The helper exits at the end of its input.
        drop(self.helper.stdin.take());
        drop(self.helper.wait());
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(&self.folder).status());
    }
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
}
