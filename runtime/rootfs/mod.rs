//! The root filesystem of a container: an overlay over the image's layers, as a detached mount. It is never attached in
//! the host's mount namespace, so nothing of it can be left there.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags};

use crate::path::Root;
use crate::sys::fs::descriptor_path;
use crate::sys::mount::{FsContext, attach, clone_descriptor, clone_path, idmap, place};
use crate::sys::namespaces::unshare_mounts_of_thread;
use crate::sys::{Context, Error, Result};

/// An overlay over `lower`, the topmost layer first. Without `upper` and `work` it is read-only. For a user namespace the
/// files of the layers belong to the ids there that they have on the disk; nothing is copied or given to anybody. With a
/// label all files have this one for SELinux.
///
/// # Errors
/// A folder cannot be opened, or the kernel refuses it as a layer.
pub fn overlay(
    lower: &[PathBuf],
    upper: Option<&Path>,
    work: Option<&Path>,
    userns: Option<BorrowedFd<'_>>,
    label: Option<&str>,
) -> Result<OwnedFd> {
    let folders = Folders { lower, upper, work, label };
    if let Some(userns) = userns {
        return folders.mount_for_users(userns);
    }
    if OLDER_KERNEL.load(Ordering::Relaxed) {
        return folders.mount_in_own_namespace();
    }
    match folders.open()?.mount() {
        // Kernels before 6.5 do not know `lowerdir+` (Documentation/filesystems/overlayfs.rst).
        Err(error) if error.errno == Errno::INVAL => {
            let mounted = folders.mount_in_own_namespace()?;
            OLDER_KERNEL.store(true, Ordering::Relaxed);
            Ok(mounted)
        }
        mounted => mounted,
    }
}

/// The kernel has refused what only a newer one knows: it is not asked again, since it writes that down each time.
static OLDER_KERNEL: AtomicBool = AtomicBool::new(false);

/// What an image has at a path, as a detached mount for reading: `lower` are its layers, the topmost first, and at least
/// two (Documentation/filesystems/overlayfs.rst, "Multiple lower layers"). The path is resolved inside the image.
///
/// An overlay without an upper folder is read-only as a filesystem, which no remount changes. The flag of a mount alone
/// would not protect the layers, which other containers share: whoever has CAP_SYS_ADMIN in the mount's namespace may
/// clear it (mount_setattr(2)).
///
/// # Errors
/// A folder cannot be opened, there is nothing at the path, or the kernel refuses the layers.
pub fn image_volume(
    lower: &[PathBuf],
    path: &str,
    userns: Option<BorrowedFd<'_>>,
    label: Option<&str>,
) -> Result<OwnedFd> {
    let whole = overlay(lower, None, None, userns, label)?;
    if path.split('/').all(|part| part.is_empty() || part == ".") {
        return Ok(whole);
    }
    // A part of a mount can be cloned only where that is attached (open_tree(2)), which it is for a moment in a namespace
    // of its own.
    in_own_namespace(|| {
        let target = place(SCRATCH)?;
        attach(whole.as_fd(), target.as_fd())?;
        let part = Root::new(place(SCRATCH)?).resolve(path)?;
        clone_descriptor(part.as_fd(), false)
    })
}

/// A folder as a detached mount, with the ids of a user namespace.
fn mapped(folder: &Path, userns: Option<BorrowedFd<'_>>) -> Result<OwnedFd> {
    let tree = clone_path(folder.to_str().unwrap_or_default(), false)?;
    if let Some(userns) = userns {
        idmap(tree.as_fd(), userns, false)?;
    }
    Ok(tree)
}

/// A folder that every host has, to attach something to in a namespace of its own.
const SCRATCH: &str = "/sys";

/// Runs `work` in a mount namespace that one thread has for this one moment, and from which nothing comes out.
fn in_own_namespace(work: impl FnOnce() -> Result<OwnedFd> + Send) -> Result<OwnedFd> {
    let inside = || {
        unshare_mounts_of_thread()?;
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        rustix::mount::mount_change("/", private).on("mount", "/ as private")?;
        work()
    };
    std::thread::scope(|scope| scope.spawn(inside).join().unwrap_or_else(|_| Err(invalid("overlay"))))
}

/// Where the layers are.
#[derive(Clone, Copy)]
struct Folders<'a> {
    lower: &'a [PathBuf],
    upper: Option<&'a Path>,
    work: Option<&'a Path>,
    label: Option<&'a str>,
}

/// The layers by descriptor: their paths may be longer than any option can be.
struct Layers {
    lower: Vec<OwnedFd>,
    upper: Option<(OwnedFd, OwnedFd)>,
    label: Option<String>,
}

impl Folders<'_> {
    fn open(&self) -> Result<Layers> {
        let open = |path: &Path| place(path.to_str().unwrap_or_default());
        let lower = self.lower.iter().map(|path| open(path)).collect::<Result<_>>()?;
        let upper = match (self.upper, self.work) {
            (Some(upper), Some(work)) => Some((open(upper)?, open(work)?)),
            _ => None,
        };
        Ok(Layers { lower, upper, label: self.label.map(str::to_owned) })
    }

    /// With mount(2), on older kernels. Layers are opened in the namespace, since the kernel takes only mounts of the
    /// caller's own namespace for them.
    fn mount_in_own_namespace(self) -> Result<OwnedFd> {
        in_own_namespace(|| {
            let layers = self.open()?;
            let options = std::ffi::CString::new(layers.options()).map_err(|_| invalid("overlay"))?;
            rustix::mount::mount("berth", SCRATCH, "overlay", MountFlags::empty(), options.as_c_str())
                .on("mount", "overlay")?;
            clone_path(SCRATCH, false)
        })
    }
}

impl Folders<'_> {
    /// Each layer is a mount of its own with the ids of the namespace, attached for a moment: the kernel takes only mounts
    /// of the caller's mount namespace for layers. The upper folder is not mapped: whoever mounts has no id in it.
    fn mount_for_users(self, userns: BorrowedFd<'_>) -> Result<OwnedFd> {
        in_own_namespace(|| {
            let scratch = FsContext::open("tmpfs")?.mount(0)?;
            attach(scratch.as_fd(), place(SCRATCH)?.as_fd())?;
            let mut layers = Folders { lower: &[], ..self }.open()?;
            for (number, folder) in self.lower.iter().enumerate() {
                let at = format!("{SCRATCH}/{number}");
                rustix::fs::mkdirat(rustix::fs::CWD, &at, rustix::fs::Mode::RWXU).on("mkdir", &at)?;
                attach(mapped(folder, Some(userns))?.as_fd(), place(&at)?.as_fd())?;
                layers.lower.push(place(&at)?);
            }
            match layers.mount() {
                Err(error) if error.errno == Errno::INVAL => {
                    let at = format!("{SCRATCH}/root");
                    rustix::fs::mkdirat(rustix::fs::CWD, &at, rustix::fs::Mode::RWXU).on("mkdir", &at)?;
                    let options = std::ffi::CString::new(layers.options()).map_err(|_| invalid("overlay"))?;
                    rustix::mount::mount(
                        "berth",
                        at.as_str(),
                        "overlay",
                        MountFlags::empty(),
                        options.as_c_str(),
                    )
                    .on("mount", "overlay")?;
                    clone_path(&at, false)
                }
                mounted => mounted,
            }
        })
    }
}

impl Layers {
    fn mount(&self) -> Result<OwnedFd> {
        let context = FsContext::open("overlay")?;
        context.set("source", Some("berth"))?;
        for layer in &self.lower {
            context.set("lowerdir+", Some(&descriptor_path(layer.as_fd())))?;
        }
        if let Some((upper, work)) = &self.upper {
            context.set("upperdir", Some(&descriptor_path(upper.as_fd())))?;
            context.set("workdir", Some(&descriptor_path(work.as_fd())))?;
        }
        if let Some(label) = &self.label {
            context.set("context", Some(label))?;
        }
        context.mount(0)
    }

    /// As one text for mount(2): by descriptor some 200 layers fit in the page that it may have.
    fn options(&self) -> String {
        let path = |fd: &OwnedFd| descriptor_path(fd.as_fd());
        let lower: Vec<String> = self.lower.iter().map(path).collect();
        let mut options = format!("lowerdir={}", lower.join(":"));
        if let Some((upper, work)) = &self.upper {
            options.push_str(&format!(",upperdir={},workdir={}", path(upper), path(work)));
        }
        if let Some(label) = &self.label {
            options.push_str(&format!(",context=\"{label}\""));
        }
        options
    }
}

fn invalid(object: &str) -> Error {
    Error { call: "mount", object: object.to_owned(), errno: Errno::INVAL }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Only root may mount.
    fn is_root() -> bool {
        rustix::process::geteuid().is_root()
    }

    fn layers(folder: &Path) -> (Vec<PathBuf>, PathBuf, PathBuf) {
        let make = |name: &str| {
            let path = folder.join(name);
            fs::create_dir(&path).unwrap();
            path
        };
        let (top, bottom) = (make("top"), make("bottom"));
        fs::write(bottom.join("both"), "bottom").unwrap();
        fs::write(bottom.join("below"), "bottom").unwrap();
        fs::write(top.join("both"), "top").unwrap();
        (vec![top, bottom], make("upper"), make("work"))
    }

    fn check(mounted: &OwnedFd, upper: &Path) {
        let root = crate::path::Root::new(crate::sys::mount::same_place(mounted).unwrap());
        let read = |path: &str| crate::sys::fs::read_all(root.open_file(path).unwrap(), 100).unwrap();
        assert_eq!(read("/both"), b"top");
        assert_eq!(read("/below"), b"bottom");
        root.make_file("/made").unwrap();
        assert!(upper.join("made").is_file(), "what is written goes to the upper folder");
    }

    #[test]
    fn a_part_of_an_image_is_a_mount_and_stays_inside() {
        if !is_root() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let (lower, ..) = layers(folder.path());
        fs::create_dir_all(lower[1].join("part/inner")).unwrap();
        fs::write(lower[1].join("part/inner/file"), "deep").unwrap();
        std::os::unix::fs::symlink("/part", lower[0].join("link")).unwrap();
        std::os::unix::fs::symlink("/etc", lower[0].join("etc-link")).unwrap();
        let read = |lower: &[PathBuf], part: &str, file: &str| {
            let root = crate::path::Root::new(image_volume(lower, part, None, None).unwrap());
            crate::sys::fs::read_all(root.open_file(file).unwrap(), 100).unwrap()
        };
        assert_eq!(read(&lower, "", "/both"), b"top");
        assert_eq!(read(&lower, "part", "/inner/file"), b"deep");
        assert_eq!(read(&lower, "/link/inner", "/file"), b"deep");
        assert_eq!(read(&lower, "part/../part/inner", "/file"), b"deep");
        assert!(
            image_volume(&lower, "etc-link/passwd", None, None).is_err(),
            "a link leads nowhere outside the image"
        );
        assert!(image_volume(&lower, "../../../../etc/passwd", None, None).is_err());
        assert!(image_volume(&lower, "none", None, None).is_err());
        assert!(image_volume(&lower[1..], "", None, None).is_err(), "a layer is never mounted itself");
    }

    #[test]
    fn layers_are_seen_from_the_top_and_nothing_is_attached() {
        if !is_root() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let (lower, upper, work) = layers(folder.path());
        let before = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mounted = overlay(&lower, Some(&upper), Some(&work), None, None).unwrap();
        check(&mounted, &upper);
        assert_eq!(fs::read_to_string("/proc/self/mountinfo").unwrap(), before);
    }

    #[test]
    fn older_kernels_mount_in_a_namespace_of_their_own() {
        if !is_root() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let (lower, upper, work) = layers(folder.path());
        let before = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let folders = Folders { lower: &lower, upper: Some(&upper), work: Some(&work), label: None };
        check(&folders.mount_in_own_namespace().unwrap(), &upper);
        assert_eq!(fs::read_to_string("/proc/self/mountinfo").unwrap(), before);
    }

    #[test]
    fn a_layer_that_is_not_there_is_named() {
        let missing = [PathBuf::from("/nonexistent/layer")];
        assert!(
            overlay(&missing, None, None, None, None).unwrap_err().to_string().contains("/nonexistent/layer")
        );
    }
}
