//! `kill`: sends a signal to a container.

use std::os::fd::AsFd;

use berth_runtime::sys::process;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open};

use crate::arguments::Kill;
use crate::error::{Error, Result};
use crate::store::{Container, Store};

/// The names of the signals 1 to 31 (signal(7)).
const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE",
    "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ",
    "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];

const KILL: i32 = Signal::KILL.as_raw();
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

/// Runs the command.
pub(crate) fn run(store: &Store, arguments: &Kill) -> Result<()> {
    let signal = parse(&arguments.signal)?;
    let container = store.find(&arguments.id)?;
    if arguments.all {
        return signal_all(&container, signal);
    }
    let process = container.process().ok_or(Error::NotRunning)?;
    process::signal(process.as_fd(), signal)?;
    let cgroup = container.cgroup()?;
    if signal == KILL && cgroup.is_frozen() {
        // On v1, a frozen process does not end before it is thawed (freezer-subsystem.rst).
        cgroup.set_frozen(false)?;
    }
    Ok(())
}

fn signal_all(container: &Container, signal: i32) -> Result<()> {
    let cgroup = container.cgroup()?;
    if signal == KILL {
        return Ok(cgroup.kill()?);
    }
    for pid in cgroup.processes()? {
        let pidfd = Pid::from_raw(pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        if let Some(pidfd) = pidfd {
            process::signal(pidfd.as_fd(), signal)?;
        }
    }
    Ok(())
}

/// Parses a signal: a number, or a name with or without `SIG`.
pub(crate) fn parse(text: &str) -> Result<i32> {
    let upper = text.to_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let offset = |rest: &str| if rest.is_empty() { Some(0) } else { rest.parse::<i32>().ok() };
    let real_time = name
        .strip_prefix("RTMIN")
        .and_then(|rest| offset(rest).map(|more| RTMIN.saturating_add(more)))
        .or_else(|| {
            name.strip_prefix("RTMAX").and_then(|rest| offset(rest).map(|less| RTMAX.saturating_add(less)))
        });
    let known = NAMES.iter().position(|known| *known == name).and_then(|at| i32::try_from(at + 1).ok());
    let number = name.parse().ok().or(known).or(real_time).filter(|number| (1..=RTMAX).contains(number));
    number.ok_or_else(|| Error::Invalid { field: "signal", why: format!("{text:?} is unknown") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_by_name_and_number() {
        for (text, number) in
            [("9", 9), ("KILL", 9), ("SIGTERM", 15), ("sigusr1", 10), ("SIGRTMIN+3", 37), ("RTMAX-1", 63)]
        {
            assert_eq!(parse(text).unwrap(), number, "{text}");
        }
        for text in ["", "0", "65", "SIGNONE", "RTMIN+99", "-1"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
