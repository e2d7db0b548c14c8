//! A small filesystem of a test's own, which can be full, frozen or broken.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::PATIENCE;

/// Where it is mounted in the folder of a test.
pub const FOLDER: &str = "disk";

/// An ext4 in a file. It is taken off when this is dropped.
pub struct Disk {
    folder: PathBuf,
}

/// A filesystem to which nothing can be written (fsfreeze(8)): whoever does waits. It is let go when this is dropped, or at
/// the latest after a time, so that a test that is killed leaves nothing frozen.
pub struct Frozen {
    helper: Child,
}

impl Disk {
    pub fn make(parent: &Path, mebibytes: u64) -> Self {
        let (image, folder) = (parent.join("disk.img"), parent.join(FOLDER));
        File::create(&image).unwrap().set_len(mebibytes << 20).unwrap();
        fs::create_dir(&folder).unwrap();
        let image = image.display().to_string();
        // Nothing is reserved for root, and an error makes it read-only.
        run("mkfs.ext4", &["-q", "-F", "-m", "0", "-e", "remount-ro", &image]);
        run("mount", &["-o", "loop", &image, &folder.display().to_string()]);
        Self { folder }
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Takes the last block.
    pub fn fill(&self) {
        let mut file = File::options().create(true).append(true).open(self.filler()).unwrap();
        for piece in [1 << 20, 4096, 1] {
            while file.write_all(&vec![0; piece]).is_ok() {}
        }
        // Blocks that were promised and not needed (ext4's delayed allocation) are given back by this.
        drop(file.sync_all());
        while file.write_all(&[0; 4096]).is_ok() {}
    }

    /// Gives it back.
    pub fn free(&self) {
        fs::remove_file(self.filler()).unwrap();
    }

    fn filler(&self) -> PathBuf {
        self.folder.join("filler")
    }

    /// Freezes it for no longer than `longest`.
    pub fn freeze(&self, longest: Duration) -> Frozen {
        let script = format!(
            "fsfreeze --freeze \"$0\" && echo frozen && {{ read -t {} _ || true; }}; fsfreeze --unfreeze \"$0\"",
            longest.as_secs()
        );
        // `read -t` is not in every sh.
        let mut helper = Command::new("bash")
            .args(["-c", &script])
            .arg(&self.folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = [0; 7];
        std::io::Read::read_exact(helper.stdout.as_mut().unwrap(), &mut said).unwrap();
        Frozen { helper }
    }

    /// It has had an error, and is read-only from now on.
    pub fn break_down(&self) {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mount = mounts.lines().find(|line| line.split(' ').nth(4) == self.folder.to_str()).unwrap();
        let device = mount.split_once(" - ext4 /dev/").unwrap().1.split(' ').next().unwrap();
        fs::write(format!("/sys/fs/ext4/{device}/trigger_fs_error"), "1").unwrap();
        let until = Instant::now() + PATIENCE;
        while fs::write(self.folder.join("probe"), "x").is_ok() {
            assert!(Instant::now() < until, "it stays writable");
        }
    }
}

impl Frozen {
    /// Whether it still is.
    pub fn holds(&mut self) -> bool {
        self.helper.try_wait().unwrap().is_none()
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // The end of its input ends it.
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
