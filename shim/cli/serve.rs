//! `berth serve`: runs the daemon.

use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use tokio::runtime::Runtime;

use super::ConfigSource;
use crate::admin_service::AdminService;
use crate::check;
use crate::config::Config;
use crate::container::nri_requests::NriRequests;
use crate::container::oom_kills;
use crate::container::update::LimitParts;
use crate::exec::ContainerAccess;
use crate::exposition::{self, ScrapeSources};
use crate::image_service::Images;
use crate::logging::{self, LogLevel};
use crate::nri;
use crate::observer_service::ObserverService;
use crate::pods::Pods;
use crate::runtime_service::Runtime as RuntimeService;
use crate::server::listener::Socket;
use crate::server::{Claim, serve};
use crate::stream::SessionListener;
use crate::traces;

/// Arguments of `berth serve`.
#[derive(Clone, Debug, Args)]
pub struct ServeArgs {
    #[command(flatten)]
    source: ConfigSource,
}

pub(super) fn run(args: ServeArgs) -> ExitCode {
    // Descriptors of the process that starts the daemon must not be inherited by keepers, plugins and hooks.
    if let Err(error) = berth_runtime::sys::process::close_on_exec_from(3) {
        return super::fail(&error);
    }
    let config = match args.source.load() {
        Ok(config) => config,
        Err(error) => return super::fail(&error),
    };
    berth_runtime::sys::memory::limit_arenas();
    let runtime = match threads() {
        Ok(runtime) => runtime,
        Err(error) => return super::fail(&format!("failed to start threads: {error}")),
    };
    // The export of traces runs on these threads.
    let entered = runtime.enter();
    let (traces, layer) = match traces::export::from_environment() {
        Ok(exported) => exported.unzip(),
        Err(error) => return super::fail(&error),
    };
    let log_level = match logging::start(&config, layer) {
        Ok(log_level) => log_level,
        Err(error) => return super::fail(&error),
    };
    drop(entered);
    for broken in &config.broken_drop_ins {
        tracing::error!("skipped a broken drop-in: {}", broken.message);
    }
    crate::descriptors::raise_limit();
    let served = start(&runtime, config, log_level);
    if let Err(error) = &served {
        tracing::error!("{error}");
    }
    if let Some(traces) = traces {
        traces.stop();
    }
    // Calls that block in the kernel do not delay the exit.
    runtime.shutdown_background();
    if served.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn threads() -> std::io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers())
        .thread_name("berth")
        .enable_all()
        .build()
}

fn start(runtime: &Runtime, config: Config, log_level: LogLevel) -> Result<(), String> {
    // The folders are claimed before anything is read from them: they may be in use by another daemon.
    let claim = Claim::take(&config).map_err(|error| error.to_string())?;
    if let Some(missing) = check::host().missing() {
        tracing::error!("this host lacks {missing}; pods will not run");
    }
    runtime.block_on(async {
        logging::follow_signals(log_level.clone())
            .map_err(|error| format!("failed to install signal handlers: {error}"))?;
        let daemon = crate::daemon::open(config.clone()).await.map_err(|error| error.to_string())?;
        crate::recover::run(&daemon).await.map_err(|error| error.to_string())?;
        oom_kills::follow(daemon.pods.clone(), daemon.cgroups.clone())
            .await
            .map_err(|error| error.to_string())?;
        let folder = config.import_dir.clone().unwrap_or_else(|| config.root.join("import"));
        let store = daemon.images.clone();
        tokio::spawn(async move { store.import_from(folder).await });
        let sessions = SessionListener::bind(&config).await.map_err(|error| error.to_string())?;
        daemon.sessions.set_base_url(sessions.base());
        tokio::spawn(sessions.serve(ContainerAccess::of(&daemon), daemon.sessions.clone()));
        let metrics_socket = serve_metrics(&config, ScrapeSources::of(&daemon)).await?;
        let nri_socket = serve_nri(&config, &daemon.pods, LimitParts::of(&daemon)).await;
        let instruments = daemon.pods.instruments.clone();
        let (runtime, images) = (RuntimeService::new(daemon.clone()), Images::new(daemon.clone()));
        let admin = AdminService::new(daemon.clone(), log_level);
        let observer = ObserverService::new(daemon.clone());
        let served = serve(config, claim, runtime, images, admin, observer, instruments).await;
        metrics_socket.inspect(Socket::remove);
        nri_socket.inspect(Socket::remove);
        daemon.pods.nri.plugins().shut_down().await;
        daemon.cgroups.release_default_parent();
        let records = daemon.pods.records.clone();
        if !tokio::task::spawn_blocking(move || records.flush(LAST_WRITES)).await.unwrap_or(false) {
            tracing::error!("failed to write all records; the next daemon gets the states from the keepers");
        }
        served.map_err(|error| error.to_string())
    })
}

/// Starts to serve metrics, if an address is configured. Returns the unix socket, if they are served on one.
async fn serve_metrics(config: &Config, sources: ScrapeSources) -> Result<Option<Socket>, String> {
    let Some(address) = &config.metrics_address else { return Ok(None) };
    let metrics = exposition::MetricsListener::bind(address).await.map_err(|error| error.to_string())?;
    let socket = metrics.socket();
    tokio::spawn(metrics.serve(sources));
    Ok(socket)
}

/// Starts NRI plugins, and listens for those that connect. Returns the socket.
async fn serve_nri(config: &Config, pods: &Arc<Pods>, limits: LimitParts) -> Option<Socket> {
    let plugins = pods.nri.plugins();
    plugins.set_host(Arc::new(NriRequests::new(pods.clone(), limits)));
    nri::listener::start(plugins, &config.nri).await
}

/// The time limit for writing the last records.
const LAST_WRITES: std::time::Duration = std::time::Duration::from_secs(5);

/// Returns the number of worker threads: enough to answer while one is busy. More only cost memory, since blocking
/// work runs on other threads.
fn workers() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 4)
}
