//! The root filesystem of a container: an overlay of the image's layers, as a detached mount. It is never attached
//! in the host's mount namespace, so it cannot be left behind there.

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

/// Mounts an overlay of `lower`, the topmost layer first. Without `upper` and `work` it is read-only. With a user
/// namespace, the layers' files have the owners inside it that they have on the disk; no file is copied or
/// changed. With a label, all files have this SELinux label.
///
/// # Errors
/// A folder cannot be opened, or the kernel rejects it as a layer.
pub fn overlay(
    lower: &[PathBuf],
    upper: Option<&Path>,
    work: Option<&Path>,
    userns: Option<BorrowedFd<'_>>,
    label: Option<&str>,
) -> Result<OwnedFd> {
    let folders = LayerPaths { lower, upper, work, label };
    if let Some(userns) = userns {
        return folders.mount_for_users(userns);
    }
    if OLDER_KERNEL.load(Ordering::Relaxed) {
        return folders.mount_in_private_namespace();
    }
    match folders.open()?.mount() {
        // Kernels before 6.5 do not support `lowerdir+` (Documentation/filesystems/overlayfs.rst).
        Err(error) if error.errno == Errno::INVAL => {
            let mounted = folders.mount_in_private_namespace()?;
            OLDER_KERNEL.store(true, Ordering::Relaxed);
            Ok(mounted)
        }
        mounted => mounted,
    }
}

/// Set when the kernel has rejected an option of newer kernels. The option is then not tried again, because the
/// kernel logs every rejection.
static OLDER_KERNEL: AtomicBool = AtomicBool::new(false);

/// Mounts a path of an image as a detached read-only mount. `lower` are the image's layers, the topmost first, and
/// at least two (Documentation/filesystems/overlayfs.rst, "Multiple lower layers"). The path is resolved inside
/// the image.
///
/// An overlay without an upper folder is a read-only filesystem, which no remount changes. A mount's read-only
/// flag alone would not protect the layers, which other containers share: a process with CAP_SYS_ADMIN in the
/// mount's namespace may clear it (mount_setattr(2)).
///
/// # Errors
/// A folder cannot be opened, the path does not exist, or the kernel rejects the layers.
pub fn image_volume(
    lower: &[PathBuf],
    path: &str,
    userns: Option<BorrowedFd<'_>>,
    label: Option<&str>,
) -> Result<OwnedFd> {
    let image = overlay(lower, None, None, userns, label)?;
    if path.split('/').all(|part| part.is_empty() || part == ".") {
        return Ok(image);
    }
    // Only a part of an attached mount can be cloned (open_tree(2)). It is attached for a moment in a private
    // mount namespace.
    in_private_namespace(|| {
        let target = place(SCRATCH)?;
        attach(image.as_fd(), target.as_fd())?;
        let part = Root::new(place(SCRATCH)?).resolve(path)?;
        clone_descriptor(part.as_fd(), false)
    })
}

/// Clones a folder to a detached mount, with the ids of a user namespace.
fn clone_with_ids(folder: &Path, userns: Option<BorrowedFd<'_>>) -> Result<OwnedFd> {
    let tree = clone_path(folder.to_str().unwrap_or_default(), false)?;
    if let Some(userns) = userns {
        idmap(tree.as_fd(), userns, false)?;
    }
    Ok(tree)
}

/// The mount point in a private mount namespace. Every host has this folder.
const SCRATCH: &str = "/sys";

/// Runs `work` in a new mount namespace of one short-lived thread. Its mounts do not propagate to other
/// namespaces.
fn in_private_namespace(work: impl FnOnce() -> Result<OwnedFd> + Send) -> Result<OwnedFd> {
    let inside = || {
        unshare_mounts_of_thread()?;
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        rustix::mount::mount_change("/", private).on("mount", "/ as private")?;
        work()
    };
    std::thread::scope(|scope| scope.spawn(inside).join().unwrap_or_else(|_| Err(invalid("overlay"))))
}

/// The paths of an overlay's layers.
#[derive(Clone, Copy)]
struct LayerPaths<'a> {
    lower: &'a [PathBuf],
    upper: Option<&'a Path>,
    work: Option<&'a Path>,
    label: Option<&'a str>,
}

/// The layers by descriptor, because their paths may be longer than an option can be.
struct OpenLayers {
    lower: Vec<OwnedFd>,
    upper: Option<(OwnedFd, OwnedFd)>,
    label: Option<String>,
}

impl LayerPaths<'_> {
    fn open(&self) -> Result<OpenLayers> {
        let open = |path: &Path| place(path.to_str().unwrap_or_default());
        let lower = self.lower.iter().map(|path| open(path)).collect::<Result<_>>()?;
        let upper = match (self.upper, self.work) {
            (Some(upper), Some(work)) => Some((open(upper)?, open(work)?)),
            _ => None,
        };
        Ok(OpenLayers { lower, upper, label: self.label.map(str::to_owned) })
    }

    /// Mounts with mount(2), on older kernels. The layers are opened in the private namespace, because the kernel
    /// accepts only layers on mounts of the caller's namespace.
    fn mount_in_private_namespace(self) -> Result<OwnedFd> {
        in_private_namespace(|| {
            let layers = self.open()?;
            let options = std::ffi::CString::new(layers.options()).map_err(|_| invalid("overlay"))?;
            rustix::mount::mount("berth", SCRATCH, "overlay", MountFlags::empty(), options.as_c_str())
                .on("mount", "overlay")?;
            clone_path(SCRATCH, false)
        })
    }
}

impl LayerPaths<'_> {
    /// Mounts an overlay for a user namespace. Each layer is mounted separately with the ids of the user
    /// namespace, for a moment, because the kernel accepts only layers on mounts of the caller's mount namespace.
    /// The upper folder is not mapped, because the mounting process has no id in the user namespace.
    fn mount_for_users(self, userns: BorrowedFd<'_>) -> Result<OwnedFd> {
        in_private_namespace(|| {
            let scratch = FsContext::open("tmpfs")?.mount(0)?;
            attach(scratch.as_fd(), place(SCRATCH)?.as_fd())?;
            let mut layers = LayerPaths { lower: &[], ..self }.open()?;
            for (number, folder) in self.lower.iter().enumerate() {
                let at = format!("{SCRATCH}/{number}");
                rustix::fs::mkdirat(rustix::fs::CWD, &at, rustix::fs::Mode::RWXU).on("mkdir", &at)?;
                attach(clone_with_ids(folder, Some(userns))?.as_fd(), place(&at)?.as_fd())?;
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

impl OpenLayers {
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

    /// Returns the options as one text for mount(2). With descriptors, about 200 layers fit in the page that the
    /// text may have.
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

    /// Returns whether this is root, because only root may mount.
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
        assert!(upper.join("made").is_file(), "writes go to the upper folder");
    }

    #[test]
    fn a_part_of_an_image_is_mounted_and_links_stay_inside() {
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
            "no link leads outside of the image"
        );
        assert!(image_volume(&lower, "../../../../etc/passwd", None, None).is_err());
        assert!(image_volume(&lower, "none", None, None).is_err());
        assert!(image_volume(&lower[1..], "", None, None).is_err(), "a layer is never mounted directly");
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
    fn older_kernels_mount_in_a_private_namespace() {
        if !is_root() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let (lower, upper, work) = layers(folder.path());
        let before = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let folders = LayerPaths { lower: &lower, upper: Some(&upper), work: Some(&work), label: None };
        check(&folders.mount_in_private_namespace().unwrap(), &upper);
        assert_eq!(fs::read_to_string("/proc/self/mountinfo").unwrap(), before);
    }

    #[test]
    fn the_error_names_a_missing_layer() {
        let missing = [PathBuf::from("/nonexistent/layer")];
        assert!(
            overlay(&missing, None, None, None, None).unwrap_err().to_string().contains("/nonexistent/layer")
        );
    }
}
