//! Stop signals: the CRI's number, the image's name, or SIGTERM.

use berth_image::ImageConfig;
use berth_proto::v1::ContainerConfig;

use super::{Result, error};

/// The stop signal of a container whose image and config name none: SIGTERM.
const DEFAULT: i32 = 15;

/// The first and the last real-time signal of programs with glibc (signal(7)).
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

/// The kernel's numbers (signal(7)) by the CRI's numbers, which are alphabetical. 0 is the default.
const BY_CRI: [i32; 35] = [
    DEFAULT, 6, 14, 7, 17, 17, 18, 8, 1, 4, 2, 29, 6, 9, 13, 29, 27, 30, 3, 11, 16, 19, 31, 15, 5, 20, 21,
    22, 23, 10, 12, 26, 28, 24, 25,
];

/// The CRI's number of SIGRTMIN; the numbers up to SIGRTMAX follow.
const CRI_RTMIN: i32 = 35;

/// The names of the signals without SIG, and their numbers.
const NAMES: [(&str, i32); 36] = [
    ("ABRT", 6),
    ("ALRM", 14),
    ("BUS", 7),
    ("CHLD", 17),
    ("CLD", 17),
    ("CONT", 18),
    ("FPE", 8),
    ("HUP", 1),
    ("ILL", 4),
    ("INT", 2),
    ("IO", 29),
    ("IOT", 6),
    ("KILL", 9),
    ("PIPE", 13),
    ("POLL", 29),
    ("PROF", 27),
    ("PWR", 30),
    ("QUIT", 3),
    ("SEGV", 11),
    ("STKFLT", 16),
    ("STOP", 19),
    ("SYS", 31),
    ("TERM", 15),
    ("TRAP", 5),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("USR1", 10),
    ("USR2", 12),
    ("VTALRM", 26),
    ("WINCH", 28),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("RTMIN", RTMIN),
    ("RTMAX", RTMAX),
];

/// Returns the signal that StopContainer sends first. An image with an unknown signal can still run: its containers
/// are stopped with the default, as in containerd.
///
/// # Errors
/// The number is not a signal of the CRI.
pub fn stop_signal(config: &ContainerConfig, image: &ImageConfig) -> Result<i32> {
    if config.stop_signal != 0 {
        return from_cri(config.stop_signal)
            .ok_or_else(|| error("stop_signal", format!("{} is not a signal", config.stop_signal)));
    }
    match image.stop_signal.as_str() {
        "" => Ok(DEFAULT),
        name => Ok(from_name(name).unwrap_or_else(|| {
            tracing::warn!(signal = name, "unknown stop signal in the image; using SIGTERM");
            DEFAULT
        })),
    }
}

/// Returns the CRI's number of a signal, for `ContainerStatus.stop_signal`.
#[must_use]
pub fn stop_signal_number(signal: i32) -> i32 {
    if (RTMIN..=RTMAX).contains(&signal) {
        return signal - RTMIN + CRI_RTMIN;
    }
    let place = BY_CRI.iter().skip(1).position(|known| *known == signal);
    place.and_then(|place| i32::try_from(place + 1).ok()).unwrap_or(0)
}

fn from_cri(number: i32) -> Option<i32> {
    if (CRI_RTMIN..=CRI_RTMIN + RTMAX - RTMIN).contains(&number) {
        return Some(number - CRI_RTMIN + RTMIN);
    }
    BY_CRI.get(usize::try_from(number).ok()?).copied()
}

/// Parses a name such as `SIGTERM`, `TERM`, `15` or `SIGRTMIN+3`.
fn from_name(name: &str) -> Option<i32> {
    if let Ok(number) = name.parse::<i32>() {
        return (1..=RTMAX).contains(&number).then_some(number);
    }
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("SIG").unwrap_or(&upper);
    let (base, offset) = match bare.find(['+', '-']) {
        Some(at) => (bare.get(..at)?, bare.get(at..)?.parse::<i32>().ok()?),
        None => (bare, 0),
    };
    let (_, number) = NAMES.iter().find(|(known, _)| *known == base)?;
    let signal = number.checked_add(offset)?;
    let is_real_time = matches!(base, "RTMIN" | "RTMAX");
    (offset == 0 || is_real_time && (RTMIN..=RTMAX).contains(&signal)).then_some(signal)
}

#[cfg(test)]
mod tests {
    use berth_proto::v1::Signal;

    use super::*;

    #[test]
    fn the_cris_numbers_are_in_the_order_of_its_enum() {
        for (signal, number) in [
            (Signal::Sigterm, 15),
            (Signal::Sigkill, 9),
            (Signal::Sigusr1, 10),
            (Signal::Sigxfsz, 25),
            (Signal::Sigrtmin, 34),
            (Signal::Sigrtminplus15, 49),
            (Signal::Sigrtmaxminus14, 50),
            (Signal::Sigrtmax, 64),
        ] {
            assert_eq!(from_cri(signal.into()), Some(number), "{signal:?}");
        }
        assert_eq!(from_cri(66), None);
        assert_eq!(from_cri(-1), None);
    }

    #[test]
    fn an_image_without_a_valid_signal_has_the_default() {
        let image = |name: &str| ImageConfig { stop_signal: name.to_owned(), ..ImageConfig::default() };
        let config = ContainerConfig::default();
        assert_eq!(stop_signal(&config, &image("SIGQUIT")), Ok(3));
        for name in ["", "SIGNONSENSE", "99", "terminate please", "\u{1b}[2J"] {
            assert_eq!(stop_signal(&config, &image(name)), Ok(DEFAULT), "{name}");
        }
        let requested = ContainerConfig { stop_signal: Signal::Sigusr1.into(), ..config };
        assert_eq!(stop_signal(&requested, &image("SIGNONSENSE")), Ok(10));
        assert!(stop_signal(&ContainerConfig { stop_signal: 66, ..requested }, &image("")).is_err());
    }

    #[test]
    fn numbers_go_both_ways() {
        for number in 1..=65 {
            let signal = from_cri(number).unwrap();
            assert_eq!(from_cri(stop_signal_number(signal)), Some(signal), "{number}");
        }
    }

    #[test]
    fn images_name_signals_in_many_ways() {
        for (name, number) in [("SIGTERM", 15), ("term", 15), ("9", 9), ("SIGRTMIN+3", 37), ("RTMAX-1", 63)] {
            assert_eq!(from_name(name), Some(number), "{name}");
        }
        for name in ["", "SIG", "0", "65", "TERM+1", "RTMIN+99", "RTMIN-1", "RTMIN+2147483647", "x"] {
            assert_eq!(from_name(name), None, "{name}");
        }
    }
}
