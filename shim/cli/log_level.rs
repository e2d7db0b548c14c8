//! `berth log-level`: shows or changes the log level of the running daemon.

use std::process::ExitCode;

use berth_proto::admin::LogLevelRequest;
use berth_proto::admin::admin_client::AdminClient;
use clap::Args;

use super::ConfigSource;
use crate::config::value::LogFilter;
use crate::server::connect;

/// Arguments of `berth log-level`.
#[derive(Clone, Debug, Args)]
pub struct LogLevelArgs {
    /// New level, or levels by module, until the next restart [default: show the level]
    #[arg(value_name = "LEVEL", conflicts_with = "reset")]
    level: Option<LogFilter>,
    /// Return to the configured level
    #[arg(long)]
    reset: bool,
    #[command(flatten)]
    source: ConfigSource,
}

pub(super) fn run(args: LogLevelArgs) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return super::fail(&format!("failed to start: {error}")),
    };
    match runtime.block_on(call(args)) {
        Ok(text) => super::print(&text),
        Err(error) => super::fail(&error),
    }
}

async fn call(args: LogLevelArgs) -> Result<String, String> {
    let config = args.source.load().map_err(|error| error.to_string())?;
    let channel = connect(&config.socket).await.map_err(|error| error.to_string())?;
    let request =
        LogLevelRequest { level: args.level.map(String::from).unwrap_or_default(), reset: args.reset };
    let answer = AdminClient::new(channel).log_level(request).await;
    let answer = answer.map_err(|status| format!("failed to change the log level: {}", status.message()))?;
    let answer = answer.into_inner();
    Ok(match answer.level == answer.configured {
        true => format!("{}\n", answer.level),
        false => format!("{} (configured: {})\n", answer.level, answer.configured),
    })
}
