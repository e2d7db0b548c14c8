//! The output of the demo: colours on a terminal, plain aligned text when piped.

use std::io::{self, Write};
use std::time::Duration;

/// The width of the column of calls.
const NAME: usize = 18;

/// The width of the column of details.
const DETAIL: usize = 46;

const BOLD: u8 = 1;
const DIM: u8 = 2;
const GREEN: u8 = 32;
const CYAN: u8 = 36;

/// Prints to standard output.
#[derive(Clone, Copy, Debug)]
pub struct Printer {
    colours: bool,
}

impl Printer {
    /// Creates a printer with or without colours.
    #[must_use]
    pub fn new(colours: bool) -> Self {
        Self { colours }
    }

    /// Prints the title.
    ///
    /// # Errors
    /// Standard output is closed.
    pub fn title(&self, text: &str) -> io::Result<()> {
        write(&format!("{}\n\n", self.paint(BOLD, text)))
    }

    /// Prints a step with its duration.
    ///
    /// # Errors
    /// As [`Printer::title`].
    pub fn step(&self, name: &str, detail: &str, took: Duration) -> io::Result<()> {
        write(&self.step_line(name, detail, took))
    }

    fn step_line(&self, name: &str, detail: &str, took: Duration) -> String {
        let name = self.paint(CYAN, &format!("{name:NAME$}"));
        let took = self.paint(BOLD, &format!("{:>9.1} ms", took.as_secs_f64() * 1e3));
        format!("  {name}{detail:DETAIL$}{took}\n")
    }

    /// Prints lines of text below a heading.
    ///
    /// # Errors
    /// As [`Printer::title`].
    pub fn text(&self, heading: &str, lines: &str) -> io::Result<()> {
        write(&self.block(heading, lines))
    }

    fn block(&self, heading: &str, lines: &str) -> String {
        let mut text = format!("    {}\n", self.paint(DIM, &format!("{heading}:")));
        for line in lines.lines() {
            // Control characters in a container's output must not reach the terminal.
            let line: String =
                line.chars().filter(|letter| !letter.is_control() || *letter == '\t').collect();
            text += &format!("    {} {line}\n", self.paint(DIM, "|"));
        }
        text
    }

    /// Prints that nothing is left.
    ///
    /// # Errors
    /// As [`Printer::title`].
    pub fn absent(&self, text: &str) -> io::Result<()> {
        write(&format!("\n  {}{text}\n", self.paint(GREEN, &format!("{:NAME$}", "nothing is left"))))
    }

    /// Prints that the demo succeeded.
    ///
    /// # Errors
    /// As [`Printer::title`].
    pub fn done(&self) -> io::Result<()> {
        write(&format!("  {}\n", self.paint(GREEN, "done")))
    }

    fn paint(&self, colour: u8, text: &str) -> String {
        if self.colours { format!("\x1b[{colour}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

fn write(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_with_and_without_colours() {
        let plain = Printer::new(false);
        let lines = [
            plain.step_line("RunPodSandbox", "web", Duration::from_micros(8_040)),
            plain.step_line("ExecSync", "env", Duration::from_millis(12_345)),
        ];
        assert_eq!(lines[0].trim_end().len(), lines[1].trim_end().len());
        assert!(lines[0].ends_with("  8.0 ms\n") && lines[1].ends_with("12345.0 ms\n"));
        let coloured = Printer::new(true).step_line("ExecSync", "env", Duration::from_millis(12_345));
        let bare = coloured.replace("\x1b[36m", "").replace("\x1b[1m", "").replace("\x1b[0m", "");
        assert_eq!(bare, lines[1]);
    }

    #[test]
    fn output_of_containers_has_no_control_characters() {
        let block = Printer::new(false).block("log", "a\x1b[2Jb\u{7}\n\nc");
        assert_eq!(block, "    log:\n    | a[2Jb\n    | \n    | c\n");
    }
}
