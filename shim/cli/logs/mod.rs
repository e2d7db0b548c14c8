//! `berth logs`: prints the log of a container, from the file that the keeper writes.
//!
//! * [`record`]: the records of the file, joined to lines
//! * [`tail`]: the end of a file
//! * [`follow`]: new records, as they are written
//! * this file: arguments, and which container's log is printed

mod follow;
pub(super) mod record;
pub(super) mod tail;

use std::io::{self, Seek, SeekFrom};
use std::path::PathBuf;
use std::process::ExitCode;

use berth_proto::v1::{Container, ContainerState};
use clap::Args;
use jiff::Timestamp;

use super::format::since;
use super::node::select::{Objects, Selected, container_name, pod_name};
use super::node::{Endpoint, NodeClient, run as run_command};
use follow::Follower;
use record::{Joiner, LogReader};

/// Arguments of `berth logs`.
#[derive(Clone, Debug, Args)]
pub struct LogsArgs {
    /// Container, by id, name or POD/CONTAINER; or a pod with one container
    #[arg(value_name = "CONTAINER|POD")]
    object: String,
    /// Select the container of a pod with several containers
    #[arg(short, long, value_name = "NAME")]
    container: Option<String>,
    /// Print new lines as they are written, until the container exits
    #[arg(short, long)]
    follow: bool,
    /// Print only the last LINES lines
    #[arg(long, value_name = "LINES")]
    tail: Option<usize>,
    /// Print only lines since a time (2026-11-27T16:00:00Z) or for a duration (90s, 10m, 2h)
    #[arg(long, value_name = "TIME", value_parser = since)]
    since: Option<Timestamp>,
    /// Print the log of the previous attempt
    #[arg(short, long)]
    previous: bool,
    /// Print the time of each line
    #[arg(short, long)]
    timestamps: bool,
    #[command(flatten)]
    endpoint: Endpoint,
}

pub(super) fn run(args: LogsArgs) -> ExitCode {
    run_command(show(args))
}

async fn show(args: LogsArgs) -> Result<String, String> {
    let mut node = NodeClient::connect(args.endpoint.clone()).await?;
    let (pods, containers) = (node.pods().await?, node.containers().await?);
    let objects = Objects { pods: &pods, containers: &containers, operations: &[] };
    let container = selected(&args, &objects)?;
    let id = container.id.clone();
    let path = path_of(&mut node, &id).await?;
    let failed = |error: io::Error| format!("failed to read {}: {error}", path.display());
    // Subscribe first: what is written after the first read is notified.
    let follower = match args.follow {
        true => Some(Follower::start(&mut node, &id, &path).await?),
        false => None,
    };
    let mut reader = LogReader::open(&path).map_err(failed)?;
    if let Some(lines) = args.tail {
        let start = tail::start(reader.file(), lines).map_err(failed)?;
        reader.file().seek(SeekFrom::Start(start)).map_err(failed)?;
    }
    let mut joiner = Joiner::new(io::stdout(), args.since, args.timestamps);
    let printed = match reader.read(&mut joiner) {
        Ok(()) => match follower {
            Some(follower) => follower.run(&mut node, reader, &mut joiner).await,
            None => Ok(()),
        },
        Err(error) => Err(error),
    };
    match printed.and_then(|()| joiner.finish()) {
        Ok(()) => Ok(String::new()),
        // The reader has closed the pipe.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(String::new()),
        Err(error) => Err(failed(error)),
    }
}

async fn path_of(node: &mut NodeClient, id: &str) -> Result<PathBuf, String> {
    let status = node.container_status(id).await?.status.unwrap_or_default();
    match status.log_path.as_str() {
        "" => Err(format!("log of container {id} not found: its client requested none")),
        path => Ok(PathBuf::from(path)),
    }
}

fn selected<'a>(args: &LogsArgs, objects: &Objects<'a>) -> Result<&'a Container, String> {
    let container = match objects.find(&args.object)? {
        Selected::Container(container) => container,
        Selected::Creating(_) => return Err(format!("pod {} is being created", args.object)),
        Selected::Pod(pod) => {
            let mut of_pod: Vec<&Container> = objects
                .containers
                .iter()
                .filter(|container| container.pod_sandbox_id == pod.id)
                .filter(|found| args.container.as_ref().is_none_or(|name| container_name(found) == name))
                .collect();
            // The newest attempt of each container, a running one first.
            of_pod.sort_by_key(|container| {
                let ended = container.state() != ContainerState::ContainerRunning;
                (container_name(container), ended, std::cmp::Reverse(container.created_at))
            });
            of_pod.dedup_by_key(|container| container_name(container));
            match of_pod.as_slice() {
                [] => return Err(format!("container of pod {} not found", pod_name(pod).1)),
                [one] => *one,
                several => {
                    let names: Vec<_> = several.iter().map(|container| container_name(container)).collect();
                    let pod = pod_name(pod).1;
                    return Err(format!(
                        "pod {pod} has several containers; select one of {} with --container",
                        names.join(", ")
                    ));
                }
            }
        }
    };
    if !args.previous {
        return Ok(container);
    }
    let mut attempts = objects.attempts(container).into_iter();
    attempts
        .find(|other| other.id == container.id)
        .and_then(|_| attempts.next())
        .ok_or_else(|| format!("previous attempt of container {} not found", container_name(container)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_is_a_time_or_a_duration() {
        assert_eq!(since("2026-11-27T16:00:00Z").unwrap().as_second(), 1_795_795_200);
        for text in ["90s", "10m", "2h", "1h30m"] {
            assert!(since(text).unwrap() < Timestamp::now(), "{text}");
        }
        for text in ["", "10", "yesterday", "10 potatoes"] {
            assert!(since(text).is_err(), "{text}");
        }
    }
}
