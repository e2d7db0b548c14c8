//! The table of `berth check`: with colours on a terminal, plain text when piped.

use std::fmt::Write;

use super::{Availability, HostFeature, HostReport};

/// Renders the report as a table.
#[must_use]
pub fn render(report: &HostReport, terminal: bool) -> String {
    let width = |column: fn(&HostFeature) -> usize, least: usize| {
        report.rows.iter().map(column).max().unwrap_or(0).clamp(least, 60)
    };
    let what = width(|row| row.what.len(), 4);
    let detail = width(|row| row.detail.len(), 6);
    let mut text = format!("{:what$}  {:4}  {:detail$}  WITHOUT IT\n", "WHAT", "HERE", "DETAIL");
    for row in &report.rows {
        let mark = mark(row, terminal);
        // The consequence is shown only for features that are missing.
        let without = if row.found == Availability::Yes { "" } else { row.without };
        let line = format!("{:what$}  {mark}  {:detail$}  {without}", row.what, row.detail);
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text.push('\n');
    match report.missing() {
        None => text.push_str("berth runs here.\n"),
        // Writing to a String does not fail.
        Some(missing) => drop(writeln!(text, "berth does not run here. Missing: {missing}.")),
    }
    text
}

/// Returns the commands that fix what is missing, one paragraph for each; shell comments name the reason.
#[must_use]
pub fn hints(report: &HostReport) -> String {
    let mut text = String::new();
    for row in report.fixable() {
        let HostFeature { what, detail, without, .. } = row;
        let command = row.hint().unwrap_or_default();
        text += &format!("\n# {what}: {detail}: {without}\n{command}\n");
    }
    text
}

/// Says how many rows can be fixed, if any.
#[must_use]
pub fn summary_of_hints(report: &HostReport) -> String {
    match report.fixable().count() {
        0 => String::new(),
        1 => "1 setting can be fixed: berth check --fix-hints shows the command.\n".to_owned(),
        count => format!("{count} settings can be fixed: berth check --fix-hints shows the commands.\n"),
    }
}

/// The mark of a row, four columns wide without its colours.
fn mark(row: &HostFeature, terminal: bool) -> String {
    let (word, colour) = match row.found {
        Availability::Yes => ("yes", 32),
        Availability::No if row.required => ("NO", 31),
        Availability::No => ("no", 33),
        Availability::Unknown => ("?", 33),
    };
    if terminal { format!("\x1b[{colour}m{word:4}\x1b[0m") } else { format!("{word:4}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> HostReport {
        let rows = vec![
            HostFeature::new("kernel", Availability::Yes, "Linux 6.18").required(),
            HostFeature::new("overlayfs", Availability::No, "no such device").required(),
            HostFeature::new("AppArmor", Availability::No, "not enabled").without("it is ignored"),
        ];
        HostReport { fit: false, rows }
    }

    #[test]
    fn plain_when_piped() {
        let expected = "\
WHAT       HERE  DETAIL          WITHOUT IT
kernel     yes   Linux 6.18
overlayfs  NO    no such device  berth does not run
AppArmor   no    not enabled     it is ignored

berth does not run here. Missing: overlayfs (no such device).
";
        assert_eq!(render(&report(), false), expected);
    }

    #[test]
    fn hints_are_commands_with_their_reason() {
        let mut report = report();
        assert_eq!((hints(&report), summary_of_hints(&report)), (String::new(), String::new()));
        report.rows.push(
            HostFeature::new("swap off", Availability::No, "/dev/sda2")
                .without("no kubelet")
                .fix("swapoff -a"),
        );
        report.rows.push(HostFeature::new("bridge", Availability::Yes, "available").fix("modprobe bridge"));
        assert_eq!(hints(&report), "\n# swap off: /dev/sda2: no kubelet\nswapoff -a\n");
        assert!(summary_of_hints(&report).starts_with("1 setting"));
    }

    #[test]
    fn coloured_on_a_terminal() {
        let text = render(&report(), true);
        assert!(text.contains("\x1b[31mNO  \x1b[0m") && text.contains("\x1b[32myes \x1b[0m"), "{text:?}");
    }
}
