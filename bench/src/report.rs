//! The output: a plain table or JSON.

use std::io::{self, Write};

use serde::Serialize;

use crate::bench::{Bench, Results};
use crate::error::BenchError;
use crate::figures::{Distribution, Figure};

#[derive(Serialize)]
struct Report<'a> {
    runtime: &'a str,
    version: &'a str,
    kernel: String,
    cpus: usize,
    milliseconds: &'a [Distribution],
    figures: &'a [Figure],
    problems: &'a [String],
}

/// Prints the results, and the problems on standard error.
pub(crate) fn print(bench: &Bench, problems: &[String], json: bool) -> Result<(), BenchError> {
    let Results { distributions, figures, .. } = &bench.results();
    let report = Report {
        runtime: &bench.version.runtime_name,
        version: &bench.version.runtime_version,
        kernel: std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
        cpus: std::thread::available_parallelism().map_or(0, usize::from),
        milliseconds: distributions,
        figures,
        problems,
    };
    let text = if json {
        serde_json::to_string_pretty(&report).map_err(|error| BenchError::Report(error.to_string()))? + "\n"
    } else {
        problems.iter().for_each(|text| problem(text));
        table(&report)
    };
    io::stdout().write_all(text.as_bytes()).map_err(|error| BenchError::Report(error.to_string()))
}

/// Prints a problem on standard error. An error of this write is ignored.
pub(crate) fn problem(text: &str) {
    drop(writeln!(io::stderr(), "berth-bench: {text}"));
}

fn table(report: &Report<'_>) -> String {
    let Report { runtime, version, kernel, cpus, .. } = report;
    let mut text = format!("{runtime} {version}, Linux {kernel}, {cpus} CPUs\n");
    let names =
        report.milliseconds.iter().map(|row| &row.name).chain(report.figures.iter().map(|row| &row.name));
    let width = names.map(|name| name.chars().count()).max().unwrap_or_default().max(12);
    if !report.milliseconds.is_empty() {
        let head = ["n", "p50", "p95", "min", "max"].map(|word| format!("{word:>9}")).concat();
        text += &format!("\n{:width$}{head}\n", "milliseconds");
    }
    for row in report.milliseconds {
        let numbers = [row.p50, row.p95, row.min, row.max].map(|number| format!("{number:>9.2}")).concat();
        text += &format!("{:width$}{:>9}{numbers}\n", row.name, row.samples);
    }
    if !report.figures.is_empty() {
        text += "\n";
    }
    for row in report.figures {
        text += &format!("{:width$}{:>9.1} {}\n", row.name, row.value, row.unit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_aligned() {
        let distribution = Distribution {
            name: "pod up".to_owned(),
            samples: 20,
            p50: 1.25,
            p95: 1000.0,
            min: 0.5,
            max: 2000.125,
        };
        let figure = Figure { name: "PSS of one pod".to_owned(), value: 812.0, unit: "kB" };
        let report = Report {
            runtime: "x",
            version: "1",
            kernel: "6.1".to_owned(),
            cpus: 2,
            milliseconds: &[distribution],
            figures: &[figure],
            problems: &[],
        };
        let expected = "\
x 1, Linux 6.1, 2 CPUs

milliseconds          n      p50      p95      min      max
pod up               20     1.25  1000.00     0.50  2000.12

PSS of one pod    812.0 kB
";
        assert_eq!(table(&report), expected);
    }
}
