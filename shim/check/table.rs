//! How `berth check` shows what it found: colours and marks on a terminal, plain words when piped.

use std::fmt::Write;

use super::{Found, HostReport, Row};

/// The report as a table.
#[must_use]
pub fn render(report: &HostReport, terminal: bool) -> String {
    let width = |column: fn(&Row) -> usize, least: usize| {
        report.rows.iter().map(column).max().unwrap_or(0).clamp(least, 60)
    };
    let what = width(|row| row.what.len(), 4);
    let detail = width(|row| row.detail.len(), 6);
    let mut text = format!("{:what$}  {:4}  {:detail$}  WITHOUT IT\n", "WHAT", "HERE", "DETAIL");
    for row in &report.rows {
        let mark = mark(row, terminal);
        // A row that is fine needs no consequence; the eye shall find those that are not.
        let without = if row.found == Found::Yes { "" } else { row.without };
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

/// Four columns, whatever the colours.
fn mark(row: &Row, terminal: bool) -> String {
    let (word, colour) = match row.found {
        Found::Yes => ("yes", 32),
        Found::No if row.required => ("NO", 31),
        Found::No => ("no", 33),
        Found::Unknown => ("?", 33),
    };
    if terminal { format!("\x1b[{colour}m{word:4}\x1b[0m") } else { format!("{word:4}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> HostReport {
        let rows = vec![
            Row::new("kernel", Found::Yes, "Linux 6.18").required(),
            Row::new("overlayfs", Found::No, "no such device").required(),
            Row::new("AppArmor", Found::No, "not enabled").without("it is passed over"),
        ];
        HostReport { fit: false, rows }
    }

    #[test]
    fn plain_when_piped() {
        let wanted = "\
WHAT       HERE  DETAIL          WITHOUT IT
kernel     yes   Linux 6.18
overlayfs  NO    no such device  berth does not run
AppArmor   no    not enabled     it is passed over

berth does not run here. Missing: overlayfs (no such device).
";
        assert_eq!(render(&report(), false), wanted);
    }

    #[test]
    fn coloured_on_a_terminal() {
        let text = render(&report(), true);
        assert!(text.contains("\x1b[31mNO  \x1b[0m") && text.contains("\x1b[32myes \x1b[0m"), "{text:?}");
    }
}
