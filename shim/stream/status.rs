//! The report of a command's exit to its client: a Kubernetes `metav1.Status` from version 4 of the protocol
//! on; before, the text of an error, or nothing.

use bytes::Bytes;
use serde_json::json;

use super::upgrade::ReportFormat;

/// How a session ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommandOutcome {
    /// It ended normally; for a command, with exit code 0.
    Success,
    /// The command exited with this code, which is not 0.
    Exit(i32),
    /// It failed with this reason.
    Failed(String),
}

/// Encodes what is written on the error stream, if anything.
#[must_use]
pub fn encode_outcome(report_format: ReportFormat, outcome: &CommandOutcome) -> Option<Bytes> {
    let status = match (report_format, outcome) {
        (ReportFormat::Text, CommandOutcome::Success) => return None,
        (ReportFormat::Text, outcome) => return Some(Bytes::from(message(outcome))),
        (ReportFormat::Status, CommandOutcome::Success) => json!({ "metadata": {}, "status": "Success" }),
        (ReportFormat::Status, CommandOutcome::Exit(code)) => json!({
            "metadata": {},
            "status": "Failure",
            "message": message(outcome),
            // Clients match these names to find the code (k8s.io/apimachinery, remotecommand).
            "reason": "NonZeroExitCode",
            "details": { "causes": [{ "reason": "ExitCode", "message": code.to_string() }] },
        }),
        (ReportFormat::Status, CommandOutcome::Failed(reason)) => json!({
            "metadata": {},
            "status": "Failure",
            "message": message(outcome),
            "reason": "InternalError",
            "details": { "causes": [{ "message": reason }] },
            "code": 500,
        }),
    };
    Some(Bytes::from(status.to_string()))
}

fn message(outcome: &CommandOutcome) -> String {
    match outcome {
        CommandOutcome::Success => String::new(),
        CommandOutcome::Exit(code) => {
            format!("command terminated with non-zero exit code: exit status {code}")
        }
        CommandOutcome::Failed(reason) => format!("Internal error occurred: {reason}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(outcome: &CommandOutcome) -> serde_json::Value {
        serde_json::from_slice(&encode_outcome(ReportFormat::Status, outcome).unwrap()).unwrap()
    }

    #[test]
    fn kubectl_finds_the_exit_code() {
        let status = json(&CommandOutcome::Exit(42));
        assert_eq!((&status["reason"], &status["status"]), (&json!("NonZeroExitCode"), &json!("Failure")));
        assert_eq!(status["details"]["causes"][0], json!({ "reason": "ExitCode", "message": "42" }));
        assert_eq!(json(&CommandOutcome::Success)["status"], "Success");
        assert_eq!(json(&CommandOutcome::Failed("no".to_owned()))["message"], "Internal error occurred: no");
    }

    #[test]
    fn older_clients_receive_errors_as_text() {
        assert_eq!(encode_outcome(ReportFormat::Text, &CommandOutcome::Success), None);
        let report = encode_outcome(ReportFormat::Text, &CommandOutcome::Exit(3)).unwrap();
        assert_eq!(report, "command terminated with non-zero exit code: exit status 3");
    }
}
