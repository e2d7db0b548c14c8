//! Checks the mounts of a restored container against those of its plan. The images of a checkpoint can contain other mounts,
//! and leave out those that hide or protect paths.

use berth_runtime::plan::{ContainerPlan, MountKind, MountOp};
use berth_runtime::restore::{MASKS, MOUNTS, ROOT};
use berth_runtime::sys::mount::{ATTR_NODEV, ATTR_NOEXEC, ATTR_NOSUID, ATTR_RDONLY};

use super::mounts::unescape;

/// The attributes that protect, with their names in mountinfo.
const PROTECTIONS: [(u64, &str); 4] =
    [(ATTR_RDONLY, "ro"), (ATTR_NOSUID, "nosuid"), (ATTR_NODEV, "nodev"), (ATTR_NOEXEC, "noexec")];

/// One line of `/proc/PID/mountinfo` (proc_pid_mountinfo(5)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenMount {
    device: String,
    root: String,
    point: String,
    options: String,
    kind: String,
}

impl SeenMount {
    /// Reads the mounts of a process. None if a line cannot be read.
    #[must_use]
    pub fn parse_all(mountinfo: &str) -> Option<Vec<Self>> {
        mountinfo.lines().map(Self::parse).collect()
    }

    fn parse(line: &str) -> Option<Self> {
        let (fields, filesystem) = line.split_once(" - ")?;
        let mut fields = fields.split(' ').skip(2);
        Some(Self {
            device: fields.next()?.to_owned(),
            root: unescape(fields.next()?),
            point: unescape(fields.next()?),
            options: fields.next()?.to_owned(),
            kind: filesystem.split(' ').next()?.to_owned(),
        })
    }

    fn has(&self, option: &str) -> bool {
        self.options.split(',').any(|other| other == option)
    }

    fn is_below(&self, folder: &str) -> bool {
        self.point.strip_prefix(folder.trim_end_matches('/')).is_some_and(|rest| rest.starts_with('/'))
    }

    fn is_same_file_as(&self, other: &Self) -> bool {
        (&self.device, &self.root) == (&other.device, &other.root)
    }
}

/// The mounts that a container may have.
#[derive(Debug)]
pub struct MountCheck<'a> {
    plan: &'a ContainerPlan,
    /// The mount points of the plan's mounts, hidden paths and read-only paths, without symbolic links.
    points: PlanPoints,
    /// The mounts of the program that restores: the sources are among them.
    ours: &'a [SeenMount],
}

/// The paths of a plan in the container, without symbolic links, in the order of the plan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PlanPoints {
    /// Mount points.
    pub mounts: Vec<String>,
    /// Paths that are hidden, if they exist.
    pub masked: Vec<String>,
    /// Paths that are read-only, if they exist.
    pub read_only: Vec<String>,
    /// Folders that stay writable below a read-only root.
    pub folders: Vec<String>,
}

impl<'a> MountCheck<'a> {
    /// A check against this plan.
    #[must_use]
    pub fn new(plan: &'a ContainerPlan, points: PlanPoints, ours: &'a [SeenMount]) -> Self {
        Self { plan, points, ours }
    }

    /// Checks the mounts of the container.
    ///
    /// # Errors
    /// The mount that must not exist, that lacks a protection, or that is missing.
    pub fn check(&self, seen: &[SeenMount]) -> Result<(), String> {
        let mut points: Vec<&str> = Vec::new();
        for mount in seen {
            if points.contains(&mount.point.as_str()) {
                return Err(format!("there are two mounts at {}", mount.point));
            }
            points.push(&mount.point);
            self.check_one(mount)?;
        }
        let external = self.plan.mounts.iter().zip(&self.points.mounts).filter(|(op, _)| is_external(op));
        let needed =
            external.map(|(_, point)| point).chain(&self.points.masked).chain(&self.points.read_only);
        match needed.into_iter().find(|point| !points.contains(&point.as_str())) {
            Some(missing) => {
                Err(format!("the checkpoint has no mount at {missing}, which the container has"))
            }
            None => Ok(()),
        }
    }

    fn check_one(&self, mount: &SeenMount) -> Result<(), String> {
        let point = &mount.point;
        if point == "/" {
            return self.check_root(mount);
        }
        let planned = self.points.mounts.iter().position(|other| other == point);
        if let Some((index, op)) = planned.and_then(|index| Some((index, self.plan.mounts.get(index)?))) {
            return self.check_planned(mount, index, op);
        }
        if self.points.masked.contains(point) {
            let is_mask = self.source(MASKS).is_some_and(|masks| masks.device == mount.device);
            return is_mask.then_some(()).ok_or_else(|| format!("the mount at {point} does not hide it"));
        }
        if self.points.read_only.contains(point) {
            return mount.has("ro").then_some(()).ok_or_else(|| format!("the mount at {point} is writable"));
        }
        let is_of_root = self.source(ROOT).is_some_and(|root| root.device == mount.device);
        if self.points.folders.contains(point) && is_of_root && mount.root == *point {
            return Ok(());
        }
        self.check_nested(mount)
    }

    fn check_root(&self, mount: &SeenMount) -> Result<(), String> {
        if !self.source(ROOT).is_some_and(|root| root.is_same_file_as(mount)) {
            return Err("its root is not the container's root filesystem".to_owned());
        }
        match self.plan.rootfs_readonly && !mount.has("ro") {
            true => Err("its root filesystem is writable".to_owned()),
            false => Ok(()),
        }
    }

    fn check_planned(&self, mount: &SeenMount, index: usize, op: &MountOp) -> Result<(), String> {
        let point = &mount.point;
        let is_same = match &op.kind {
            MountKind::Filesystem { fstype, .. } => mount.kind == *fstype && (mount.root == "/"),
            MountKind::Dev { .. } => mount.kind == "tmpfs" && mount.root == "/",
            MountKind::Cgroup { hierarchies } if hierarchies.is_empty() => self.is_cgroup(mount),
            MountKind::Cgroup { .. } => mount.kind == "tmpfs" && mount.root == "/",
            MountKind::Bind { .. }
            | MountKind::Tree { .. }
            | MountKind::PodShm
            | MountKind::PodFile { .. } => {
                self.source(&format!("{MOUNTS}/{index}")).is_some_and(|source| source.is_same_file_as(mount))
            }
        };
        if !is_same {
            return Err(format!("the mount at {point} is not the one of the container"));
        }
        check_protections(mount, op)
    }

    /// Checks a mount below one of the plan: of a volume, or a v1 hierarchy.
    fn check_nested(&self, mount: &SeenMount) -> Result<(), String> {
        let containing = self.plan.mounts.iter().zip(&self.points.mounts).enumerate();
        let containing = containing.filter(|(_, (_, point))| mount.is_below(point));
        let deepest = containing.max_by_key(|(_, (_, point))| point.len());
        let is_expected = deepest.as_ref().is_some_and(|(index, (op, _))| match &op.kind {
            MountKind::Cgroup { hierarchies } => !hierarchies.is_empty() && self.is_cgroup(mount),
            MountKind::Bind { recursive: true, .. } => {
                let folder = format!("{MOUNTS}/{index}");
                self.ours.iter().any(|own| own.is_below(&folder) && own.is_same_file_as(mount))
            }
            _ => false,
        });
        match deepest.filter(|_| is_expected) {
            Some((_, (op, _))) if op.recursive_attributes || matches!(op.kind, MountKind::Cgroup { .. }) => {
                check_protections(mount, op)
            }
            Some(_) => Ok(()),
            None => Err(format!("it has a mount at {}, which the container does not have", mount.point)),
        }
    }

    /// Whether this is the container's own part of a cgroup hierarchy.
    fn is_cgroup(&self, mount: &SeenMount) -> bool {
        mount.kind.starts_with("cgroup") && (mount.root == "/" || !self.plan.cgroup_namespace)
    }

    /// Returns the mount of the program that restores at a path.
    fn source(&self, path: &str) -> Option<&SeenMount> {
        self.ours.iter().rev().find(|mount| mount.point == path)
    }
}

/// Whether a mount comes from outside of the container.
#[must_use]
pub fn is_external(op: &MountOp) -> bool {
    matches!(
        op.kind,
        MountKind::Bind { .. } | MountKind::Tree { .. } | MountKind::PodShm | MountKind::PodFile { .. }
    )
}

fn check_protections(mount: &SeenMount, op: &MountOp) -> Result<(), String> {
    let lacks = |(attribute, name): &(u64, &str)| op.set & attribute != 0 && !mount.has(name);
    match PROTECTIONS.into_iter().find(lacks) {
        Some((_, name)) => Err(format!("the mount at {} is not {name}", mount.point)),
        None => Ok(()),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use berth_runtime::plan::{
        CgroupHierarchy, CgroupJoin, FdSlot, NamespaceSource, PidNamespace, ProcessPlan, Propagation,
        StdioPlan,
    };

    fn op(target: &str, kind: MountKind, set: u64) -> MountOp {
        MountOp {
            target: target.to_owned(),
            kind,
            set,
            clear: 0,
            recursive_attributes: true,
            propagation: Propagation::Private,
            recursive_propagation: true,
        }
    }

    pub(in super::super) fn plan() -> ContainerPlan {
        let filesystem = |fstype: &str| MountKind::Filesystem {
            fstype: fstype.to_owned(),
            source: String::new(),
            options: Vec::new(),
            keep_mode: false,
        };
        let bind = MountKind::Bind {
            source: "/srv".to_owned(),
            recursive: true,
            create: false,
            ids: berth_runtime::plan::MountIds::Host,
        };
        let hierarchy = CgroupHierarchy { folder: "cpu".to_owned(), options: Vec::new(), links: Vec::new() };
        ContainerPlan {
            pid: PidNamespace::New,
            userns: None,
            net: NamespaceSource::Pod,
            ipc: NamespaceSource::Pod,
            uts: NamespaceSource::Pod,
            cgroup_namespace: true,
            cgroup: CgroupJoin::default(),
            rootfs: FdSlot(0),
            rootfs_readonly: false,
            rootfs_propagation: Propagation::Private,
            hooks: None,
            mounts: vec![
                op("/proc", filesystem("proc"), ATTR_NOSUID),
                op("/data", bind, ATTR_RDONLY),
                op("/sys/fs/cgroup", MountKind::Cgroup { hierarchies: vec![hierarchy] }, ATTR_RDONLY),
            ],
            directories: Vec::new(),
            devices: Vec::new(),
            masked_paths: vec!["/proc/kcore".to_owned()],
            readonly_paths: vec!["/proc/sys".to_owned()],
            sysctls: Vec::new(),
            hostname: None,
            mount_label: None,
            process: ProcessPlan::default(),
            stdio: StdioPlan::default(),
            restore: None,
            runtime: None,
        }
    }

    const OURS: &str = "\
1 0 254:0 / / ro - ext4 /dev/vda rw
2 1 0:90 / /tmp rw - tmpfs restore rw
3 2 0:44 / /tmp/root rw - overlay berth rw
4 2 0:70 / /tmp/masks rw - tmpfs masks rw
5 2 254:0 /srv /tmp/mounts/1 ro - ext4 /dev/vda rw
6 5 0:71 / /tmp/mounts/1/below ro - tmpfs below rw";

    const SEEN: &str = "\
11 0 0:44 / / rw - overlay berth rw
12 11 0:80 / /proc rw,nosuid - proc none rw
13 11 254:0 /srv /data ro - ext4 /dev/vda rw
14 13 0:71 / /data/below ro - tmpfs below rw
15 11 0:81 / /sys/fs/cgroup ro - tmpfs tmpfs rw
16 15 0:29 / /sys/fs/cgroup/cpu ro - cgroup none rw
17 12 0:70 /file /proc/kcore ro - tmpfs masks rw
18 12 0:80 /sys /proc/sys ro - proc none rw";

    fn points() -> PlanPoints {
        let list = |paths: &[&str]| paths.iter().map(|&path| path.to_owned()).collect();
        PlanPoints {
            mounts: list(&["/proc", "/data", "/sys/fs/cgroup"]),
            masked: list(&["/proc/kcore"]),
            read_only: list(&["/proc/sys"]),
            folders: Vec::new(),
        }
    }

    fn check(plan: &ContainerPlan, seen: &str) -> Result<(), String> {
        let ours = SeenMount::parse_all(OURS).unwrap();
        MountCheck::new(plan, points(), &ours).check(&SeenMount::parse_all(seen).unwrap())
    }

    #[test]
    fn the_mounts_of_the_plan_are_accepted() {
        check(&plan(), SEEN).unwrap();
    }

    #[test]
    fn other_mounts_are_refused() {
        for (extra, why) in [
            ("19 11 254:0 / /host rw - ext4 /dev/vda rw", "/host"),
            ("19 12 0:99 / /proc/x rw - sysfs none rw", "/proc/x"),
            ("19 13 0:99 / /data/x rw - proc none rw", "/data/x"),
            ("19 13 0:80 / /data ro - proc none rw", "two mounts"),
            ("19 15 0:29 /../.. /sys/fs/cgroup/x ro - cgroup none rw", "/sys/fs/cgroup/x"),
        ] {
            let error = check(&plan(), &format!("{SEEN}\n{extra}")).unwrap_err();
            assert!(error.contains(why), "{why}: {error}");
        }
    }

    #[test]
    fn missing_protections_are_refused() {
        for (old, new, why) in [
            ("/data ro", "/data rw", "/data is not ro"),
            ("/data/below ro", "/data/below rw", "/data/below is not ro"),
            ("254:0 /srv /data", "254:0 /etc /data", "/data is not the one"),
            ("/proc rw,nosuid", "/proc rw", "/proc is not nosuid"),
            ("0:70 /file /proc/kcore", "0:99 /file /proc/kcore", "does not hide"),
            ("/sys /proc/sys ro", "/sys /proc/sys rw", "/proc/sys is writable"),
            ("17 12 0:70 /file /proc/kcore ro - tmpfs masks rw\n", "", "no mount at /proc/kcore"),
            ("0:44 / / rw", "254:0 / / rw", "root"),
            ("proc none rw\n13", "sysfs none rw\n13", "/proc is not the one"),
        ] {
            assert!(SEEN.contains(old), "{old}");
            let error = check(&plan(), &SEEN.replacen(old, new, 1)).unwrap_err();
            assert!(error.contains(why), "{why}: {error}");
        }
        let read_only = ContainerPlan { rootfs_readonly: true, ..plan() };
        assert!(check(&read_only, SEEN).unwrap_err().contains("writable"));
    }
}
