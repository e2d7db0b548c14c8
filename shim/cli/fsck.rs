//! `berth fsck`: asks the daemon to check its host, or checks it by itself if no daemon runs.

use std::process::ExitCode;
use std::time::Duration;

use berth_proto::admin::FsckRequest;
use berth_proto::admin::admin_client::AdminClient;
use clap::Args;

use super::ConfigSource;
use super::node::OutputFormat;
use crate::config::Config;
use crate::fsck::{self, Outcome, Report};
use crate::inventory::Scope;
use crate::server::{Claim, connect};

/// The exit codes, for scripts.
const FOUND: u8 = 1;
const FAILED: u8 = 2;

/// The time limit for the deletion of large folders by this process. The next daemon deletes what is left.
const DELETION_TIME: Duration = Duration::from_secs(600);

/// The time limit for writing the last records.
const LAST_WRITES: Duration = Duration::from_secs(5);

/// Arguments of `berth fsck`.
#[derive(Clone, Debug, Args)]
pub struct FsckArgs {
    /// Remove what is found. Without this flag, nothing is changed
    #[arg(long)]
    repair: bool,
    /// Set the format of the output
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    output: OutputFormat,
    #[command(flatten)]
    source: ConfigSource,
}

pub(super) fn run(args: FsckArgs) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return fail(&format!("failed to start: {error}")),
    };
    let checked = runtime.block_on(checked(args.source, args.repair));
    // A call that blocks in the kernel does not delay the exit.
    runtime.shutdown_background();
    let report = match checked {
        Ok(report) => report,
        Err(error) => return fail(&error),
    };
    let text = match args.output {
        OutputFormat::Text => report.to_text(super::format::size),
        OutputFormat::Json => match report.to_json() {
            Ok(text) => text,
            Err(error) => return fail(&error.to_string()),
        },
    };
    if super::print(&text) != ExitCode::SUCCESS || report.has_failures() {
        return ExitCode::from(FAILED);
    }
    if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::from(FOUND) }
}

fn fail(error: &str) -> ExitCode {
    let _printed = super::fail(&error);
    ExitCode::from(FAILED)
}

async fn checked(source: ConfigSource, repair: bool) -> Result<Report, String> {
    let config = source.load().map_err(|error| error.to_string())?;
    if let Ok(channel) = connect(&config.socket).await {
        let answer = AdminClient::new(channel).max_decoding_message_size(usize::MAX);
        let answer = { answer }.fsck(FsckRequest { repair }).await;
        return answer.map(|answer| answer.into_inner().into()).map_err(|status| status.message().to_owned());
    }
    if repair { repaired(config).await } else { alone(&config).await }
}

/// Checks the host while no daemon runs. A daemon that starts meanwhile does not wait: the check fails.
async fn alone(config: &Config) -> Result<Report, String> {
    Claim::check_free(config).map_err(|error| error.to_string())?;
    let report = fsck::check(&Scope::of(config)).await.map_err(|error| error.to_string())?;
    Claim::check_free(config).map_err(|error| error.to_string())?;
    Ok(report)
}

/// Repairs the host as a daemon that starts does, without serving: recovery first, then what it leaves.
async fn repaired(config: Config) -> Result<Report, String> {
    let claim = Claim::take(&config).map_err(|error| error.to_string())?;
    let scope = Scope::of(&config);
    let mut found = fsck::check(&scope).await.map_err(|error| error.to_string())?;
    if found.is_clean() {
        return Ok(found);
    }
    let daemon = crate::daemon::open(config).await.map_err(|error| error.to_string())?;
    crate::recover::complete(&daemon).await.map_err(|error| error.to_string())?;
    let rest = fsck::run(&fsck::DaemonParts::of(&daemon), true).await.map_err(|error| error.to_string())?;
    if let Some(socket) = crate::inventory::files::dead_socket(&scope) {
        std::fs::remove_file(&socket.name).map_err(|error| format!("failed to remove {socket}: {error}"))?;
    }
    daemon.images.wait_for_deletions(DELETION_TIME).await;
    daemon.cgroups.release_default_parent();
    let records = daemon.pods.records.clone();
    if !tokio::task::spawn_blocking(move || records.flush(LAST_WRITES)).await.unwrap_or(false) {
        return Err("failed to write all records".to_owned());
    }
    let left = fsck::check(&scope).await.map_err(|error| error.to_string())?;
    drop(claim);
    for finding in &mut found.findings {
        let same = |other: &&fsck::Finding| other.kind == finding.kind && other.name == finding.name;
        let outcome = rest.findings.iter().find(same).map(|other| other.outcome.clone());
        finding.outcome = match (outcome, left.findings.iter().any(|other| same(&other))) {
            (Some(outcome), _) => outcome,
            (None, true) => Outcome::Failed("it is still there".to_owned()),
            (None, false) if finding.kind == "pod-record" => Outcome::Stopped,
            (None, false) => Outcome::Removed,
        };
    }
    Ok(found)
}
