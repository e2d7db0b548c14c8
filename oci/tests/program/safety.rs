//! A container can neither change the runtime's program nor reach a file of the host.

use std::fs::{self, File, OpenOptions, Permissions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::json;

use crate::lab::{Lab, SLEEPER, succeed};

const PROGRAM: &str = env!("CARGO_BIN_EXE_berth-oci");

/// `EROFS` or, while the program runs, `ETXTBSY`.
const REFUSED: [i32; 2] = [30, 26];

const CAPABILITIES: [&str; 5] =
    ["CAP_SYS_PTRACE", "CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_CHOWN"];

/// Opens the runtime's program while it runs in the container, and writes to it when it does not run any more.
const OVERWRITE: &str = "exec 3</proc/1/exe; echo opened; touch /tmp/opened
    until [ -e /tmp/started ]; do sleep 0.05; done
    mount -o remount,rw /proc/self/fd/3; chmod 666 /proc/self/fd/3; echo evil >/proc/self/fd/3; echo wrote $?";

fn write_code(path: &Path) -> Option<i32> {
    OpenOptions::new().write(true).open(path).err()?.raw_os_error()
}

/// CVE-2019-5736, with the descriptor opened on the host, where nothing prevents that.
#[test]
fn a_kept_descriptor_of_the_program_is_read_only() {
    let lab = Lab::new(SLEEPER);
    lab.create(&["--pid-file", "pid", "c1"]);
    let pid = fs::read_to_string(lab.path("pid")).unwrap();
    let program = Path::new("/proc").join(pid).join("exe");
    let kept = File::open(&program).unwrap();
    let refused = |path: &Path| write_code(path).is_some_and(|code| REFUSED.contains(&code));
    assert!(refused(&program), "{:?}", write_code(&program));
    succeed(&lab.berth(&["delete", "--force", "c1"]));
    let path = Path::new("/proc/self/fd").join(kept.as_raw_fd().to_string());
    assert!(refused(&path), "{:?}", write_code(&path));
    let mode = kept.set_permissions(Permissions::from_mode(0o777));
    assert_eq!(mode.unwrap_err().raw_os_error(), Some(30));
}

/// CVE-2019-5736, from a container with many capabilities.
#[test]
fn a_container_cannot_change_the_program() {
    let mut lab = Lab::new("touch /tmp/started; sleep 600");
    for set in ["bounding", "effective", "permitted"] {
        lab.config["process"]["capabilities"][set] = json!(CAPABILITIES);
    }
    lab.config["root"]["readonly"] = false.into();
    lab.write();
    let before = fs::read(PROGRAM).unwrap();
    lab.create(&["c1"]);
    let output = File::create(lab.path("attack")).unwrap();
    let mut attack = lab.command(&["exec", "c1", "sh", "-c", OVERWRITE]);
    let mut attack = attack.stdout(output.try_clone().unwrap()).stderr(output).spawn().unwrap();
    lab.until(|| lab.path("rootfs/tmp/opened").exists() || attack.try_wait().unwrap().is_some());
    succeed(&lab.berth(&["start", "c1"]));
    attack.wait().unwrap();
    let output = fs::read_to_string(lab.path("attack")).unwrap();
    let denied = output.contains("Permission denied") && !output.contains("opened");
    assert!(denied || output.contains("Read-only file system"), "{output}");
    assert!(!output.contains("wrote 0"), "{output}");
    // The program as an exec's command (a link in the image can lead to it).
    drop(lab.berth(&["exec", "c1", "/proc/self/exe", "--version"]));
    assert!(fs::read(PROGRAM).unwrap() == before, "the program has changed");
}

/// The root of most hosts is a shared mount (systemd). A mount on a peer of it appears on the host.
#[test]
fn the_mounts_of_a_container_are_not_on_the_host() {
    const SHARED: &str =
        "mount --make-rshared / && \"$0\" --root \"$1\" run c1 && grep -c rootfs/ /proc/self/mountinfo";
    let lab = Lab::new("echo works");
    let mut host = Command::new("unshare");
    host.args(["--mount", "--propagation", "private", "sh", "-c", SHARED, PROGRAM]).arg(lab.path("state"));
    let output = host.current_dir(lab.folder.path()).stdin(Stdio::null()).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "works\n0\n", "{output:?}");
}

/// CVE-2024-21626: neither a descriptor of the caller nor one of the runtime is open in a container, and a working
/// folder by such a descriptor leads nowhere.
#[test]
fn no_descriptor_of_the_host_is_in_a_container() {
    const LOOK: &str = "ls -l /proc/self/fd; cat secret; cd ..; cat secret";
    let mut lab = Lab::new(LOOK);
    fs::write(lab.path("secret"), "SECRET OF THE HOST").unwrap();
    let sleeper = Lab::new(SLEEPER);
    sleeper.leave_running(&["run", "--detach", "c1"]);
    let check = |lab: &Lab, arguments: &[&str], what: &str| {
        let root = lab.path("state").display().to_string();
        let mut shell = Command::new("sh");
        shell.args(["-c", "exec 7<. 9</ 8<secret; exec \"$0\" --root \"$@\"", PROGRAM, &root]);
        let output =
            shell.args(arguments).current_dir(lab.folder.path()).stdin(Stdio::null()).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(!text.contains("SECRET"), "{what}: {text}");
        let targets = text.lines().filter_map(|line| line.split(" -> ").nth(1));
        let foreign: Vec<_> = targets
            .filter(|target| !["pipe:", "/dev/null", "/proc/"].iter().any(|own| target.starts_with(own)))
            .collect();
        assert!(foreign.is_empty(), "{what}: {foreign:?}");
        text
    };
    assert!(check(&lab, &["run", "c1"], "run").contains(" -> "));
    fs::write(sleeper.path("secret"), "SECRET OF THE HOST").unwrap();
    assert!(check(&sleeper, &["exec", "c1", "sh", "-c", LOOK], "exec").contains(" -> "));
    for number in 3..24 {
        let folder = format!("/proc/self/fd/{number}");
        check(&sleeper, &["exec", "--cwd", &folder, "c1", "sh", "-c", LOOK], &folder);
        lab.config["process"]["cwd"] = folder.clone().into();
        lab.write();
        check(&lab, &["run", "c1"], &folder);
    }
}
