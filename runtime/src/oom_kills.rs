//! The OOM kills that the kernel counts in a cgroup. The keeper reads them from a descriptor and the daemon from a file.

/// Parses the line `oom_kill N` of `memory.events` (v2, cgroup-v2.rst) or `memory.oom_control` (v1, since Linux 4.13).
#[must_use]
pub fn parse(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn oom_kills_of_both_versions() {
        assert_eq!(parse("low 0\nhigh 0\nmax 5\noom 1\noom_kill 2\noom_group_kill 7\n"), Some(2));
        assert_eq!(parse("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"), Some(3));
        assert_eq!(parse("oom_kill_disable 0\nunder_oom 0\n"), None);
        assert_eq!(parse(""), None);
    }
}
