//! `ps`: lists the processes in a container.

use std::process::Command;

use crate::arguments::{Format, Ps};
use crate::error::{Error, Result};
use crate::state::print;
use crate::store::Store;

/// Runs the command. The table is that of ps(1), with the lines of the container's processes.
pub(crate) fn run(store: &Store, arguments: &Ps) -> Result<()> {
    let pids = store.find(&arguments.id)?.cgroup()?.processes()?;
    if arguments.format == Format::Json {
        return print(&format!("{}\n", serde_json::Value::from(pids)));
    }
    let options =
        if arguments.options.is_empty() { vec!["-ef".to_owned()] } else { arguments.options.clone() };
    let output = Command::new("ps").args(&options).output();
    let output = output.map_err(|source| Error::Io { action: "run ps", source })?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(Error::Invalid { field: "options of ps", why });
    }
    let table = String::from_utf8_lossy(&output.stdout);
    let filtered = filter(&table, &pids).ok_or_else(|| Error::Invalid {
        field: "options of ps",
        why: "the table has no column PID".to_owned(),
    })?;
    print(&filtered)
}

/// Returns the title and the lines of these processes.
fn filter(table: &str, pids: &[i32]) -> Option<String> {
    let mut lines = table.lines();
    let title = lines.next()?;
    let column = title.split_whitespace().position(|name| name == "PID")?;
    let is_inside = |line: &&str| {
        let pid = line.split_whitespace().nth(column).and_then(|text| text.parse::<i32>().ok());
        pid.is_some_and(|pid| pids.contains(&pid))
    };
    Some([title].into_iter().chain(lines.filter(is_inside)).map(|line| format!("{line}\n")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_selected_by_their_pid() {
        let table = "UID PID CMD\nroot 1 init\nroot 17 sh\nroot 170 x\n";
        assert_eq!(filter(table, &[17]).as_deref(), Some("UID PID CMD\nroot 17 sh\n"));
        assert_eq!(filter("UID CMD\n", &[17]), None);
    }
}
