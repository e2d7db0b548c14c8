//! `berth events`: shows what happens on the node, as it happens, and recent events.

use std::io::Write;
use std::process::ExitCode;

use berth_proto::admin::{NodeEvent, NodeEventKind, StreamEventsRequest};
use clap::Args;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::format::{short, since, time};
use super::node::{Endpoint, NodeClient, OutputFormat, run as run_command};

/// Arguments of `berth events`.
#[derive(Clone, Debug, Args)]
pub struct EventsArgs {
    /// Show only events of these kinds, such as oom-killed or pull-failed
    #[arg(short, long, value_name = "KIND", value_delimiter = ',', value_parser = kind_named)]
    kind: Vec<NodeEventKind>,
    /// Show only events of pods of this namespace
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// Show only events of this pod, by name or by the start of its id
    #[arg(short, long, value_name = "POD")]
    pod: Option<String>,
    /// Show also recent events, since a time (2026-11-27T16:00:00Z) or for a duration (90s, 10m, 2h)
    #[arg(long, value_name = "TIME", value_parser = since)]
    since: Option<Timestamp>,
    /// Exit after the recent events; without --since all of them are shown
    #[arg(long)]
    no_follow: bool,
    /// Set the format of the output; JSON has one object per line
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    output: OutputFormat,
    #[command(flatten)]
    endpoint: Endpoint,
}

pub(super) fn run(args: EventsArgs) -> ExitCode {
    run_command(show(args))
}

async fn show(args: EventsArgs) -> Result<String, String> {
    let mut node = NodeClient::connect(args.endpoint.clone()).await?;
    let failed = |status: tonic::Status| format!("failed to receive events: {}", status.message());
    let since = args.since.map(nanoseconds).unwrap_or_default();
    let request = StreamEventsRequest { since, recent_only: args.no_follow };
    let mut events = node.observer.stream_events(request).await.map_err(failed)?.into_inner();
    while let Some(event) = events.message().await.map_err(failed)? {
        if !is_selected(&args, &event) {
            continue;
        }
        let line = match args.output {
            OutputFormat::Text => text(&event),
            OutputFormat::Json => object(&event).to_string(),
        };
        let mut stdout = std::io::stdout().lock();
        if writeln!(stdout, "{line}").and_then(|()| stdout.flush()).is_err() {
            // The reader has closed the pipe.
            return Ok(String::new());
        }
    }
    match args.no_follow {
        true => Ok(String::new()),
        false => Err("the daemon has closed the stream".to_owned()),
    }
}

/// Converts a time for a request, in which 0 means no time.
fn nanoseconds(time: Timestamp) -> i64 {
    i64::try_from(time.as_nanosecond()).unwrap_or(i64::MAX).max(1)
}

/// Parses the name of a kind: `oom-killed` is `OOM_KILLED`.
fn kind_named(text: &str) -> Result<NodeEventKind, String> {
    let known = (1..).map_while(|number| NodeEventKind::try_from(number).ok());
    let mut known = known.map(|kind| (name(kind), kind));
    known.clone().find(|(name, _)| name == text).map(|(_, kind)| kind).ok_or_else(|| {
        let names: Vec<String> = known.by_ref().map(|(name, _)| name).collect();
        format!("is not one of {}", names.join(", "))
    })
}

fn name(kind: NodeEventKind) -> String {
    kind.as_str_name().to_ascii_lowercase().replace('_', "-")
}

fn is_selected(args: &EventsArgs, event: &NodeEvent) -> bool {
    let by_kind = args.kind.is_empty() || args.kind.contains(&event.kind());
    let by_namespace = args.namespace.as_ref().is_none_or(|wanted| *wanted == event.namespace);
    let of_pod = |wanted: &String| {
        *wanted == event.pod || (!wanted.is_empty() && event.pod_id.starts_with(wanted.as_str()))
    };
    by_kind && by_namespace && args.pod.as_ref().is_none_or(of_pod)
}

/// An event as one line: time, kind, object, details.
pub(super) fn text(event: &NodeEvent) -> String {
    let mut parts = vec![time(event.at), format!("{:17}", name(event.kind()))];
    let path = [&event.namespace, &event.pod, &event.container];
    let path: Vec<&str> = path.into_iter().map(String::as_str).filter(|part| !part.is_empty()).collect();
    let id = if event.container_id.is_empty() { &event.pod_id } else { &event.container_id };
    match path.is_empty() {
        true => parts.push(event.image.clone()),
        false => parts.push(format!("{} ({})", path.join("/"), short(id))),
    }
    if event.kind() == NodeEventKind::ContainerExited {
        parts.push(format!("code {}", event.exit_code));
        parts.push(event.reason.clone());
    }
    parts.push(berth_image::printable(&event.message, usize::MAX));
    parts.retain(|part| !part.is_empty());
    parts.join("  ").trim_end().to_owned()
}

/// An event as JSON, without empty fields.
pub(super) fn object(event: &NodeEvent) -> Value {
    let mut object = Map::new();
    object.insert("time".to_owned(), json!(time(event.at)));
    object.insert("kind".to_owned(), json!(name(event.kind())));
    let fields = [
        ("namespace", &event.namespace),
        ("pod", &event.pod),
        ("podId", &event.pod_id),
        ("container", &event.container),
        ("containerId", &event.container_id),
        ("image", &event.image),
        ("reason", &event.reason),
        ("message", &event.message),
    ];
    let set = fields.into_iter().filter(|(_, value)| !value.is_empty());
    object.extend(set.map(|(key, value)| (key.to_owned(), json!(value))));
    if event.kind() == NodeEventKind::ContainerExited {
        object.insert("exitCode".to_owned(), json!(event.exit_code));
    }
    Value::Object(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit() -> NodeEvent {
        NodeEvent {
            at: 1_700_000_000_123_000_000,
            kind: NodeEventKind::ContainerExited.into(),
            pod_id: "ab".repeat(32),
            namespace: "default".to_owned(),
            pod: "web".to_owned(),
            container_id: "cd".repeat(32),
            container: "main".to_owned(),
            reason: "OOMKilled".to_owned(),
            exit_code: 137,
            ..NodeEvent::default()
        }
    }

    #[test]
    fn an_event_is_one_line() {
        assert_eq!(
            text(&exit()),
            "2023-11-14T22:13:20.123Z  container-exited   default/web/main (cdcdcdcdcdcdc)  code 137  OOMKilled"
        );
        let pull = NodeEvent {
            at: 1_700_000_000_000_000_000,
            kind: NodeEventKind::PullFailed.into(),
            image: "a.test/b:1".to_owned(),
            message: "not found\u{1b}[2J\nmore".to_owned(),
            ..NodeEvent::default()
        };
        assert_eq!(
            text(&pull),
            "2023-11-14T22:13:20.000Z  pull-failed        a.test/b:1  not found\\u{1b}[2J more"
        );
    }

    #[test]
    fn json_has_only_fields_with_a_value() {
        let object = object(&exit());
        assert_eq!((&object["exitCode"], &object["pod"]), (&json!(137), &json!("web")));
        assert!(object.get("image").is_none());
    }

    #[test]
    fn kinds_have_names() {
        assert_eq!(kind_named("oom-killed"), Ok(NodeEventKind::OomKilled));
        assert_eq!(kind_named("network-failed"), Ok(NodeEventKind::NetworkFailed));
        let error = kind_named("oom").unwrap_err();
        assert!(error.contains("pod-created") && error.contains("network-failed"), "{error}");
        assert!(!error.contains("unknown"), "{error}");
    }
}
