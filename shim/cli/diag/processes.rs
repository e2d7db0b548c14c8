//! Processes, as proc(5) describes them. `cmdline` waits for the memory lock of a process; the other files do not.

use std::fs;

use super::page::ProcessSummary;

/// The longest command.
const MAX_COMMAND: usize = 120;

/// The most frames of a stack.
const MAX_FRAMES: usize = 12;

/// Returns a process; none if it has ended.
pub(super) fn read(pid: i32, of: &str) -> Option<ProcessSummary> {
    let file = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).ok();
    let mut process = parse(&file("status")?);
    process.pid = pid;
    process.of = of.to_owned();
    process.waits_in = file("wchan").filter(|wchan| wchan != "0").unwrap_or_default();
    if process.state == "D" {
        let stack = file("stack").unwrap_or_default();
        process.kernel_stack = stack.lines().take(MAX_FRAMES).map(frame).collect();
    }
    Some(process)
}

/// Returns the command with its arguments.
pub(super) fn command(pid: i32) -> Result<String, String> {
    let path = format!("/proc/{pid}/cmdline");
    let arguments = fs::read(&path).map_err(|error| format!("failed to read {path}: {error}"))?;
    let text = String::from_utf8_lossy(&arguments).replace('\0', " ");
    Ok(berth_image::printable(&text, MAX_COMMAND))
}

/// Removes the address of a frame: `[<0>] do_nanosleep+0x6e/0x180`.
fn frame(line: &str) -> String {
    let name = line.split_once("] ").map_or(line, |(_, name)| name);
    name.split('+').next().unwrap_or(name).trim().to_owned()
}

/// Parses `/proc/PID/status`.
fn parse(status: &str) -> ProcessSummary {
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_default().trim()
    };
    let number = |name: &str| field(name).split_whitespace().next().and_then(|word| word.parse::<u64>().ok());
    ProcessSummary {
        command: berth_image::printable(field("Name"), MAX_COMMAND),
        state: field("State").chars().take(1).collect(),
        threads: number("Threads").unwrap_or(0),
        resident_bytes: number("VmRSS").unwrap_or(0).saturating_mul(1024),
        ..ProcessSummary::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_parsed() {
        let process =
            parse("Name:\tsleep\nState:\tD (disk sleep)\nPid:\t7\nVmRSS:\t    1024 kB\nThreads:\t3\n");
        assert_eq!((process.command.as_str(), process.state.as_str()), ("sleep", "D"));
        assert_eq!((process.threads, process.resident_bytes), (3, 1 << 20));
        assert_eq!(parse("").state, "");
        assert_eq!(frame("[<0>] do_nanosleep+0x6e/0x180"), "do_nanosleep");
    }

    #[test]
    fn this_process_is_read() {
        let own = i32::try_from(std::process::id()).unwrap();
        let process = read(own, "test").unwrap();
        assert!(process.threads > 0 && process.resident_bytes > 0 && !process.command.is_empty());
        assert!(!command(own).unwrap().is_empty());
        assert_eq!(read(i32::MAX, "none"), None);
    }
}
