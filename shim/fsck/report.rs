//! The findings of a check as text, as JSON, and as messages of berth's private service.

use berth_proto::admin::{FsckFinding, FsckOutcome, FsckResponse};
use serde::Serialize;

use super::compare::Candidate;

/// The outcome of a finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was only found.
    Found,
    /// It is removed.
    Removed,
    /// The pod is stopped, its resources are released.
    Stopped,
    /// It cannot be removed now, for this reason.
    Kept(String),
    /// The removal failed with this error.
    Failed(String),
}

impl Outcome {
    fn word(&self) -> &'static str {
        match self {
            Self::Found => "found",
            Self::Removed => "removed",
            Self::Stopped => "stopped",
            Self::Kept(_) => "kept",
            Self::Failed(_) => "failed",
        }
    }

    fn why(&self) -> &str {
        match self {
            Self::Kept(why) | Self::Failed(why) => why,
            Self::Found | Self::Removed | Self::Stopped => "",
        }
    }
}

/// A leftover, or a record whose object is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The kind of the object: `cgroup`, `layer`, `pod-record`.
    pub kind: String,
    /// Its name: a path, a link's name, an id.
    pub name: String,
    /// The id of its pod or container. Empty if it has none.
    pub owner: String,
    /// Why it is a finding.
    pub reason: String,
    /// The disk space that its removal frees.
    pub bytes: u64,
    /// The outcome.
    pub outcome: Outcome,
}

impl Finding {
    /// Creates the finding of a candidate.
    #[must_use]
    pub fn new(candidate: &Candidate, bytes: u64, outcome: Outcome) -> Self {
        Self {
            kind: candidate.object.kind.name().to_owned(),
            name: candidate.object.name.clone(),
            owner: candidate.object.owner.id().to_owned(),
            reason: candidate.reason.clone(),
            bytes,
            outcome,
        }
    }
}

/// The result of a check.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The findings.
    pub findings: Vec<Finding>,
}

/// A finding in JSON.
#[derive(Serialize)]
struct JsonFinding<'a> {
    kind: &'a str,
    name: &'a str,
    owner: &'a str,
    reason: &'a str,
    bytes: u64,
    outcome: &'a str,
    why: &'a str,
}

/// A report in JSON.
#[derive(Serialize)]
struct JsonReport<'a> {
    clean: bool,
    bytes: u64,
    findings: Vec<JsonFinding<'a>>,
}

impl Report {
    /// Whether nothing was found.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty()
    }

    /// Whether something could not be removed.
    #[must_use]
    pub fn has_failures(&self) -> bool {
        self.findings.iter().any(|finding| matches!(finding.outcome, Outcome::Failed(_)))
    }

    /// The disk space of all findings in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.findings.iter().map(|finding| finding.bytes).sum()
    }

    /// Renders the report as JSON.
    ///
    /// # Errors
    /// Never in practice: all values can be encoded.
    pub fn to_json(&self) -> serde_json::Result<String> {
        let findings = self.findings.iter().map(|finding| JsonFinding {
            kind: &finding.kind,
            name: &finding.name,
            owner: &finding.owner,
            reason: &finding.reason,
            bytes: finding.bytes,
            outcome: finding.outcome.word(),
            why: finding.outcome.why(),
        });
        let report = JsonReport { clean: self.is_clean(), bytes: self.bytes(), findings: findings.collect() };
        serde_json::to_string_pretty(&report).map(|text| text + "\n")
    }

    /// Renders the report as a table. `human` formats a size.
    #[must_use]
    pub fn to_text(&self, human: impl Fn(u64) -> String) -> String {
        if self.is_clean() {
            return "clean: every object on this host has a record, and every record its object\n".to_owned();
        }
        let mut rows = vec![["KIND", "SIZE", "RESULT", "OBJECT", "REASON"].map(str::to_owned)];
        for finding in &self.findings {
            let size = if finding.bytes == 0 { "-".to_owned() } else { human(finding.bytes) };
            let reason = match finding.outcome.why() {
                "" => finding.reason.clone(),
                why => format!("{}; {why}", finding.reason),
            };
            let named = !finding.owner.is_empty() && !finding.name.contains(&finding.owner);
            let object = match named {
                true => format!("{} of {}", finding.name, finding.owner),
                false => finding.name.clone(),
            };
            rows.push([finding.kind.clone(), size, finding.outcome.word().to_owned(), object, reason]);
        }
        let width =
            |column: usize| rows.iter().filter_map(|row| row.get(column)).map(String::len).max().unwrap_or(0);
        let (kind_width, size_width, outcome_width, name_width) = (width(0), width(1), width(2), width(3));
        let mut text = String::new();
        for [kind, size, outcome, object, reason] in &rows {
            text.push_str(&format!(
                "{kind:kind_width$}  {size:>size_width$}  {outcome:outcome_width$}  {object:name_width$}  {reason}\n"
            ));
        }
        text.push_str(&format!("\n{}\n", self.summary(human)));
        text
    }

    fn summary(&self, human: impl Fn(u64) -> String) -> String {
        let count = |wanted: &[&str]| {
            self.findings.iter().filter(|finding| wanted.contains(&finding.outcome.word())).count()
        };
        let total = self.findings.len();
        match count(&["found"]) == total {
            true => {
                format!("found {total}; `berth fsck --repair` removes them and frees {}", human(self.bytes()))
            }
            false => {
                let freed = self.findings.iter().filter(|finding| finding.outcome == Outcome::Removed);
                let freed = human(freed.map(|finding| finding.bytes).sum());
                let left = count(&["failed", "kept", "found"]);
                format!("found {total}, repaired {}, left {left}; freed {freed}", total - left)
            }
        }
    }
}

impl From<Report> for FsckResponse {
    fn from(report: Report) -> Self {
        let finding = |finding: Finding| FsckFinding {
            outcome: match finding.outcome {
                Outcome::Found => FsckOutcome::Found,
                Outcome::Removed => FsckOutcome::Removed,
                Outcome::Stopped => FsckOutcome::Stopped,
                Outcome::Kept(_) => FsckOutcome::Kept,
                Outcome::Failed(_) => FsckOutcome::Failed,
            }
            .into(),
            why: finding.outcome.why().to_owned(),
            kind: finding.kind,
            name: finding.name,
            owner: finding.owner,
            reason: finding.reason,
            bytes: finding.bytes,
        };
        Self { findings: report.findings.into_iter().map(finding).collect() }
    }
}

impl From<FsckResponse> for Report {
    fn from(response: FsckResponse) -> Self {
        let finding = |finding: FsckFinding| Finding {
            outcome: match finding.outcome() {
                FsckOutcome::Found => Outcome::Found,
                FsckOutcome::Removed => Outcome::Removed,
                FsckOutcome::Stopped => Outcome::Stopped,
                FsckOutcome::Kept => Outcome::Kept(finding.why),
                FsckOutcome::Failed => Outcome::Failed(finding.why),
            },
            kind: finding.kind,
            name: finding.name,
            owner: finding.owner,
            reason: finding.reason,
            bytes: finding.bytes,
        };
        Self { findings: response.findings.into_iter().map(finding).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(outcomes: &[Outcome]) -> Report {
        let finding = |outcome: &Outcome| Finding {
            kind: "cgroup".to_owned(),
            name: "/berth/x".to_owned(),
            owner: "y".to_owned(),
            reason: "its pod has no record".to_owned(),
            bytes: 7,
            outcome: outcome.clone(),
        };
        Report { findings: outcomes.iter().map(finding).collect() }
    }

    #[test]
    fn a_report_survives_the_service() {
        let outcomes = [
            Outcome::Found,
            Outcome::Removed,
            Outcome::Stopped,
            Outcome::Kept("it runs".to_owned()),
            Outcome::Failed("busy".to_owned()),
        ];
        let report = report(&outcomes);
        assert_eq!(Report::from(FsckResponse::from(report.clone())), report);
        assert!(report.has_failures() && !report.is_clean());
    }

    #[test]
    fn the_text_names_object_and_reason() {
        let human = |bytes| format!("{bytes} B");
        let text = report(&[Outcome::Found]).to_text(human);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "KIND    SIZE  RESULT  OBJECT         REASON");
        assert_eq!(lines[1], "cgroup   7 B  found   /berth/x of y  its pod has no record");
        assert_eq!(lines[3], "found 1; `berth fsck --repair` removes them and frees 7 B");
        let failed = report(&[Outcome::Removed, Outcome::Failed("busy".to_owned())]).to_text(human);
        assert!(failed.contains("its pod has no record; busy"), "{failed}");
        assert!(failed.ends_with("found 2, repaired 1, left 1; freed 7 B\n"), "{failed}");
        assert!(Report::default().to_text(human).starts_with("clean"));
    }

    #[test]
    fn the_json_has_all_fields() {
        let json: serde_json::Value =
            serde_json::from_str(&report(&[Outcome::Failed("busy".to_owned())]).to_json().unwrap()).unwrap();
        assert_eq!(json["clean"], false);
        assert_eq!(json["bytes"], 7);
        let finding = serde_json::json!({
            "kind": "cgroup", "name": "/berth/x", "owner": "y", "reason": "its pod has no record", "bytes": 7,
            "outcome": "failed", "why": "busy",
        });
        assert_eq!(json["findings"][0], finding);
    }
}
