//! `berth demo`: runs a pod on this machine, without network access and without changes to existing objects. It
//! starts a separate daemon in a temporary folder, loads an image that berth embeds, runs a pod with two containers
//! of which one fetches from the other over 127.0.0.1, and checks that nothing is left.
//!
//! * [`daemon`]: the separate daemon, and the network that it may leave
//! * [`image`]: the image, as an OCI archive
//! * [`script`]: the CRI calls
//! * [`leftovers`]: checks that nothing is left
//! * [`mod@print`]: the output
//! * this file: the order of the steps, and the cleanup in every case
//! * [`mod@print`]: the output of the demo

pub mod daemon;
pub mod image;
pub mod leftovers;
pub mod print;
pub mod script;

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::check;
use daemon::PrivateDaemon;
use print::Printer;

/// Arguments of `berth demo`.
#[derive(Clone, Debug, Default, Args)]
pub struct DemoArgs {
    /// Show the daemon's log too
    #[arg(long)]
    log: bool,
}

/// The reason why the demo failed.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// A file or folder cannot be used.
    #[error("failed to {action} {}: {source}", path.display())]
    File {
        /// The operation, such as "read".
        action: &'static str,
        /// The path of the file.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// The machine lacks a feature, or a system call failed.
    #[error("{0}")]
    Host(String),
    /// The daemon does not start, or does not end.
    #[error("the daemon {0}")]
    Daemon(String),
    /// A call failed.
    #[error("{rpc}: {why}")]
    Call {
        /// The name of the RPC.
        rpc: &'static str,
        /// The daemon's message.
        why: String,
    },
    /// An answer is not the expected one.
    #[error("{0}")]
    Unexpected(String),
    /// The output cannot be written.
    #[error("failed to write to stdout: {0}")]
    Print(#[from] io::Error),
    /// The user stopped the demo.
    #[error("stopped by {0}")]
    Stopped(&'static str),
    /// Objects are left.
    #[error("left on this machine: {0}")]
    Left(String),
}

impl DemoError {
    /// Returns the function for `map_err` that adds the operation and the path to an error.
    pub(crate) fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { action, path, source }
    }
}

/// Runs the demo.
#[must_use]
pub fn run(options: DemoArgs) -> ExitCode {
    if let Some(why) = unfit() {
        eprintln!("berth demo: {why}");
        return ExitCode::FAILURE;
    }
    let printer = Printer::new(io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none());
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("berth demo: failed to start: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(everything(&options, &printer)) {
        Ok(()) => ExitCode::SUCCESS,
        // `berth demo | head` closes the pipe early; everything has been removed at this point.
        Err(DemoError::Print(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("berth demo: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Returns the reason why the demo cannot run on this machine.
fn unfit() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("root is required for namespaces, mounts and cgroups: try `sudo berth demo`".to_owned());
    }
    let missing = check::host().missing()?;
    Some(format!("this machine lacks {missing}; see `berth check`"))
}

async fn everything(options: &DemoArgs, printer: &Printer) -> Result<(), DemoError> {
    // Orphans become children of this process (PR_SET_CHILD_SUBREAPER), so that every process that the daemon leaves
    // is found.
    nix::sys::prctl::set_child_subreaper(true)
        .map_err(|error| DemoError::Host(format!("failed to become a subreaper: {error}")))?;
    let mut signals = StopSignals::watch()?;
    let folder = Folder::create()?;
    let mut daemon = None;
    let played = tokio::select! {
        played = play(&folder, printer, &mut daemon) => played,
        signal = signals.next() => Err(DemoError::Stopped(signal)),
    };
    let mut results = vec![played];
    if let Some(mut daemon) = daemon {
        if results.iter().any(Result::is_err) {
            results.push(script::remove_everything(&daemon).await);
        }
        results.push(daemon.end(printer).await);
        // The daemon's log explains a failure.
        if options.log || results.iter().any(Result::is_err) {
            results.push(printer.text("the daemon's log", &daemon.log()).map_err(DemoError::from));
        }
        results.push(leftovers::prove_nothing_left(&daemon, printer).await);
    }
    results.push(folder.remove());
    // The first error is the reason; the others follow from it or list leftovers.
    let mut errors = results.into_iter().filter_map(Result::err);
    let first = errors.next();
    errors.for_each(|error| eprintln!("berth demo: {error}"));
    first.map_or_else(|| printer.done().map_err(DemoError::from), Err)
}

async fn play(
    folder: &Folder,
    printer: &Printer,
    running: &mut Option<PrivateDaemon>,
) -> Result<(), DemoError> {
    printer.title(&format!(
        "berth {} runs a pod on this machine, in {}",
        env!("CARGO_PKG_VERSION"),
        folder.path.display()
    ))?;
    let daemon = running.insert(PrivateDaemon::spawn(&folder.path)?);
    daemon.wait_until_ready(printer).await?;
    script::play(daemon, printer).await
}

/// Ctrl-C, SIGTERM and SIGHUP. They are watched before anything is created, so that everything is removed.
#[derive(Debug)]
struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl StopSignals {
    fn watch() -> Result<Self, DemoError> {
        let watch =
            |kind| signal(kind).map_err(|error| DemoError::Host(format!("failed to watch signals: {error}")));
        Ok(Self {
            interrupt: watch(SignalKind::interrupt())?,
            terminate: watch(SignalKind::terminate())?,
            hangup: watch(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "Ctrl-C",
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.hangup.recv() => "SIGHUP",
        }
    }
}

/// The temporary folder of the demo.
#[derive(Debug)]
struct Folder {
    path: PathBuf,
}

impl Folder {
    fn create() -> Result<Self, DemoError> {
        use std::os::unix::fs::DirBuilderExt;
        // An existing folder is refused: in a folder that all users can write to, it may be an attack.
        let path = std::env::temp_dir().join(format!("berth-demo-{:08x}", rand::random::<u32>()));
        let created = std::fs::DirBuilder::new().mode(0o700).create(&path);
        created.map_err(DemoError::file("create folder", &path))?;
        Ok(Self { path })
    }

    fn remove(self) -> Result<(), DemoError> {
        std::fs::remove_dir_all(&self.path).map_err(DemoError::file("remove", &self.path))
    }
}
