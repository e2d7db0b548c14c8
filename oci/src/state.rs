//! `state` and `list`: print containers (OCI runtime specification, "Query State").

use std::io::Write;

use serde_json::{Value, json};

use crate::arguments::{Format, List};
use crate::error::{Error, Result};
use crate::store::{Container, Status, Store};

/// Prints the state of a container.
pub(crate) fn run(store: &Store, id: &str) -> Result<()> {
    print(&format!("{:#}\n", state(&store.find(id)?)?))
}

/// Lists all containers.
pub(crate) fn list(store: &Store, arguments: &List) -> Result<()> {
    let all = store.all()?;
    if arguments.quiet {
        return print(&all.iter().map(|container| format!("{}\n", container.record.id)).collect::<String>());
    }
    let states = all.iter().map(state).collect::<Result<Vec<_>>>()?;
    if arguments.format == Format::Json {
        return print(&format!("{}\n", Value::Array(states)));
    }
    let mut text = format!("{:<40} {:<8} {:<8} {:<20} {}\n", "ID", "PID", "STATUS", "CREATED", "BUNDLE");
    for state in &states {
        let field = |name: &str| state.get(name).and_then(Value::as_str).unwrap_or_default();
        let pid = state.get("pid").and_then(Value::as_i64).unwrap_or(0);
        let created = field("created").get(..19).unwrap_or_default();
        text.push_str(&format!(
            "{:<40} {pid:<8} {:<8} {created:<20} {}\n",
            field("id"),
            field("status"),
            field("bundle")
        ));
    }
    print(&text)
}

fn state(container: &Container) -> Result<Value> {
    let (record, status) = (&container.record, container.status()?);
    let pid = if status == Status::Stopped { 0 } else { record.pid };
    Ok(json!({
        "ociVersion": record.oci_version,
        "id": record.id,
        "pid": pid,
        "status": status.name(),
        "bundle": record.bundle,
        "rootfs": record.rootfs,
        "created": record.created,
        "annotations": record.annotations,
        "owner": "",
    }))
}

/// Prints to standard output. A reader that closes the pipe is not an error.
pub(crate) fn print(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(source) if source.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Error::Io { action: "write to standard output", source })
        }
        _ => Ok(()),
    }
}
