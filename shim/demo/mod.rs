//! `berth demo`: a pod from nothing on this machine, without a network and without touching what is there. A daemon of its
//! own in a temporary folder, an image that berth carries, a pod with two containers of which one fetches from the other
//! over 127.0.0.1, and a look at what is left.
//!
//! * [`daemon`]: the private daemon, and the network that it may leave
//! * [`image`]: the image, as an OCI archive
//! * [`script`]: the calls
//! * [`leftovers`]: what was there before and what is there afterwards
//! * [`print`]: how it is shown
//! * this file: the order, and that everything is removed however it ends

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
use leftovers::Snapshot;
use print::Printer;

/// Arguments of `berth demo`.
#[derive(Clone, Debug, Default, Args)]
pub struct Options {
    /// Show the daemon's log as well
    #[arg(long)]
    log: bool,
}

/// Why the demo ended early.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// A file or folder cannot be used.
    #[error("{action} {}: {source}", path.display())]
    File {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The machine does not offer something.
    #[error("{0}")]
    Host(String),
    /// The daemon does not come up, or does not end.
    #[error("the daemon {0}")]
    Daemon(String),
    /// A call failed.
    #[error("{rpc}: {why}")]
    Call {
        /// Its name.
        rpc: &'static str,
        /// The daemon's message.
        why: String,
    },
    /// An answer is not what it has to be.
    #[error("{0}")]
    Unexpected(String),
    /// What the demo shows cannot be written.
    #[error("write to stdout: {0}")]
    Print(#[from] io::Error),
    /// The user stopped it.
    #[error("stopped by {0}")]
    Stopped(&'static str),
    /// Something is still there.
    #[error("left on this machine: {0}")]
    Left(String),
}

impl DemoError {
    /// For `map_err`: what was being done with a file.
    pub(crate) fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { action, path, source }
    }
}

/// Runs the demo.
#[must_use]
pub fn run(options: Options) -> ExitCode {
    if let Some(why) = unfit() {
        eprintln!("berth demo: {why}");
        return ExitCode::FAILURE;
    }
    let printer = Printer::new(io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none());
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("berth demo: start: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(everything(&options, &printer)) {
        Ok(()) => ExitCode::SUCCESS,
        // `berth demo | head` has seen enough; everything is removed by then.
        Err(DemoError::Print(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("berth demo: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Why it cannot run here, in a sentence.
fn unfit() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("it needs root, for namespaces, mounts and cgroups: try `sudo berth demo`".to_owned());
    }
    let missing = check::host().missing()?;
    Some(format!("this machine lacks {missing}; `berth check` shows all that it offers"))
}

async fn everything(options: &Options, printer: &Printer) -> Result<(), DemoError> {
    // Whatever loses its parent becomes a child of this process (PR_SET_CHILD_SUBREAPER), so that nothing that the
    // daemon leaves running can be missed.
    nix::sys::prctl::set_child_subreaper(true)
        .map_err(|error| DemoError::Host(format!("become a subreaper: {error}")))?;
    let mut signals = Signals::watch()?;
    let before = Snapshot::take()?;
    let folder = Folder::make()?;
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
        // A failure is explained by what the daemon said.
        if options.log || results.iter().any(Result::is_err) {
            results.push(printer.text("the daemon's log", &daemon.log()).map_err(DemoError::from));
        }
        results.push(leftovers::prove_nothing_left(&before, &daemon, printer).await);
    }
    results.push(folder.remove());
    // The first says why; the others follow from it or tell what is left.
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

/// Ctrl-C, SIGTERM and a closed terminal. They are watched from before anything is made: what is made is removed.
#[derive(Debug)]
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    fn watch() -> Result<Self, DemoError> {
        let watch = |kind| signal(kind).map_err(|error| DemoError::Host(format!("watch signals: {error}")));
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

/// The temporary folder that everything is in.
#[derive(Debug)]
struct Folder {
    path: PathBuf,
}

impl Folder {
    fn make() -> Result<Self, DemoError> {
        use std::os::unix::fs::DirBuilderExt;
        // Made by this process alone: an existing one may be a stranger's trap in a folder that all can write to.
        let path = std::env::temp_dir().join(format!("berth-demo-{:08x}", rand::random::<u32>()));
        let made = std::fs::DirBuilder::new().mode(0o700).create(&path);
        made.map_err(DemoError::file("make folder", &path))?;
        Ok(Self { path })
    }

    fn remove(self) -> Result<(), DemoError> {
        std::fs::remove_dir_all(&self.path).map_err(DemoError::file("remove", &self.path))
    }
}
