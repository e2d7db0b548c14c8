//! Finds CRIU, the program that dumps and restores processes, and checks its version and what the kernel offers it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::str::FromStr;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::error::CriError;

/// The name of the program in the folders of PATH.
const PROGRAM: &str = "criu";
/// The folders that are searched if PATH is not set.
const FOLDERS: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The time limit of a call that only reports something.
const PROBE_TIMEOUT: Duration = Duration::from_secs(20);

/// The oldest version that is supported.
const OLDEST: CriuVersion = CriuVersion { major: 4, minor: 1 };
/// The first kernel without SO_PASSCRED on internet sockets, and the first version of CRIU that does not ask for it: older
/// ones cannot dump a TCP socket there.
const STRICT_KERNEL: (u32, u32) = (6, 16);
const OLDEST_ON_STRICT_KERNEL: CriuVersion = CriuVersion { major: 4, minor: 2 };

/// A version of CRIU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CriuVersion {
    major: u32,
    minor: u32,
}

impl fmt::Display for CriuVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl FromStr for CriuVersion {
    type Err = ();

    /// Reads the output of `criu --version`: `Version: 4.2.1`, followed by other lines.
    fn from_str(output: &str) -> Result<Self, ()> {
        let line = output.lines().find_map(|line| line.strip_prefix("Version:")).ok_or(())?;
        let mut parts = line.trim().split(|letter: char| !letter.is_ascii_digit());
        let mut number = || parts.next().and_then(|part| part.parse().ok());
        match (number(), number()) {
            (Some(major), minor) => Ok(Self { major, minor: minor.unwrap_or(0) }),
            (None, _) => Err(()),
        }
    }
}

impl CriuVersion {
    /// Returns the oldest version that works on a kernel.
    #[must_use]
    pub fn required(kernel: Option<(u32, u32)>) -> Self {
        match kernel {
            Some(kernel) if kernel >= STRICT_KERNEL => OLDEST_ON_STRICT_KERNEL,
            _ => OLDEST,
        }
    }
}

/// CRIU on this host, in a version that works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Criu {
    /// The path of the program.
    pub program: PathBuf,
    /// Its version.
    pub version: CriuVersion,
}

/// Why containers cannot be checkpointed on this host.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoCriu {
    /// The program does not exist.
    #[error(
        "CRIU is not installed ({place}): install the package criu, version {required} or newer, or set criu_path"
    )]
    Missing {
        /// Where it was looked for.
        place: String,
        /// The oldest version that works.
        required: CriuVersion,
    },
    /// The version does not work here.
    #[error("CRIU {version} ({}) is too old for this kernel: install version {required} or newer, or set criu_path", .program.display())]
    Old {
        /// The path of the program.
        program: PathBuf,
        /// Its version.
        version: CriuVersion,
        /// The oldest version that works.
        required: CriuVersion,
    },
    /// The program cannot be run, or the kernel lacks what it needs.
    #[error("CRIU ({}) does not work here: {why}", .program.display())]
    Broken {
        /// The path of the program.
        program: PathBuf,
        /// The reason that it reports.
        why: String,
    },
}

impl From<NoCriu> for CriError {
    fn from(error: NoCriu) -> Self {
        Self::precondition("checkpoints", error)
    }
}

/// CRIU as `berth check` and Status show it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CriuReport {
    /// The path of the program, if there is one.
    pub program: Option<PathBuf>,
    /// Its version, if it works.
    pub version: Option<String>,
    /// Whether containers can be checkpointed.
    pub usable: bool,
    /// The reason why they cannot, or an empty text.
    pub why: String,
}

/// Finds CRIU and checks its version against the kernel's. Blocks.
///
/// # Errors
/// It is missing, too old, or cannot be run.
pub fn find(configured: Option<&Path>, kernel: Option<(u32, u32)>) -> Result<Criu, NoCriu> {
    let required = CriuVersion::required(kernel);
    let program = locate(configured, required)?;
    let broken = |why: String| NoCriu::Broken { program: program.clone(), why };
    let output = run(&program, &["--version"]).map_err(broken)?;
    let version: CriuVersion =
        output.parse().map_err(|()| broken(format!("unknown version: {}", output.trim())))?;
    if version < required {
        return Err(NoCriu::Old { program, version, required });
    }
    Ok(Criu { program, version })
}

/// Finds CRIU like [`find`], and has it check the kernel. Blocks.
#[must_use]
pub fn report(configured: Option<&Path>, kernel: Option<(u32, u32)>) -> CriuReport {
    let found = find(configured, kernel);
    let program = match &found {
        Ok(criu) => Some(criu.program.clone()),
        Err(NoCriu::Missing { .. }) => None,
        Err(NoCriu::Old { program, .. } | NoCriu::Broken { program, .. }) => Some(program.clone()),
    };
    let checked = match found {
        Ok(criu) => match run(&criu.program, &["check"]) {
            Ok(_) => Ok(criu.version),
            Err(why) => Err(NoCriu::Broken { program: criu.program, why }.to_string()),
        },
        Err(error) => Err(error.to_string()),
    };
    match checked {
        Ok(version) => {
            CriuReport { program, version: Some(version.to_string()), usable: true, why: String::new() }
        }
        Err(why) => CriuReport { program, version: None, usable: false, why },
    }
}

fn locate(configured: Option<&Path>, required: CriuVersion) -> Result<PathBuf, NoCriu> {
    if let Some(path) = configured {
        let missing = || NoCriu::Missing { place: format!("no file {}", path.display()), required };
        return path.is_file().then(|| path.to_owned()).ok_or_else(missing);
    }
    let folders = std::env::var_os("PATH").unwrap_or_else(|| FOLDERS.into());
    let found = std::env::split_paths(&folders)
        .filter(|folder| folder.is_absolute())
        .map(|folder| folder.join(PROGRAM))
        .find(|path| path.is_file());
    found.ok_or_else(|| NoCriu::Missing { place: format!("no {PROGRAM} in PATH"), required })
}

/// Runs a call that only reports something. Returns its standard output.
fn run(program: &Path, arguments: &[&str]) -> Result<String, String> {
    let mut call = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| error.to_string())?;
    let until = Instant::now() + PROBE_TIMEOUT;
    // The output fits into a pipe, so the program never waits for a reader.
    while let Ok(None) = call.try_wait() {
        if Instant::now() > until {
            drop(call.kill());
            drop(call.wait());
            return Err(format!("no answer within {} s", PROBE_TIMEOUT.as_secs()));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let output = call.wait_with_output().map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    let last = errors.lines().rev().find(|line| !line.trim().is_empty());
    Err(last.map_or_else(|| output.status.to_string(), str::to_owned))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_the_output_of_criu() {
        let version = |text: &str| text.parse::<CriuVersion>().map(|version| version.to_string());
        assert_eq!(version("Version: 4.2.1\n"), Ok("4.2".to_owned()));
        assert_eq!(version("Version: 3.17.1\nGitID: v3.17.1\n"), Ok("3.17".to_owned()));
        assert_eq!(version("Version: 5\n"), Ok("5.0".to_owned()));
        assert_eq!(version("usage: criu"), Err(()));
    }

    #[test]
    fn newer_kernels_need_newer_versions() {
        assert_eq!(CriuVersion::required(Some((6, 1))).to_string(), "4.1");
        assert_eq!(CriuVersion::required(Some((6, 16))).to_string(), "4.2");
        assert_eq!(CriuVersion::required(Some((7, 0))).to_string(), "4.2");
        assert!("Version: 3.17\n".parse::<CriuVersion>().unwrap() < CriuVersion::required(None));
    }

    #[test]
    fn a_missing_program_is_reported_with_what_to_install() {
        let error = find(Some(Path::new("/nonexistent/criu")), None).unwrap_err();
        let text = CriError::from(error).to_string();
        assert!(text.contains("/nonexistent/criu") && text.contains("install the package criu"), "{text}");
        let report = report(Some(Path::new("/nonexistent/criu")), None);
        assert!(!report.usable && report.program.is_none(), "{report:?}");
    }

    #[test]
    fn a_program_that_is_not_criu_is_reported() {
        let error = find(Some(Path::new("/bin/false")), None).unwrap_err();
        assert!(matches!(error, NoCriu::Broken { .. }), "{error}");
        let error = find(Some(Path::new("/bin/echo")), None).unwrap_err();
        assert!(error.to_string().contains("unknown version"), "{error}");
    }
}
