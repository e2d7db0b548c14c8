//! How a command's end is told to its client: a `metav1.Status` of Kubernetes from version 4 on, before that the text of
//! an error or nothing.

use bytes::Bytes;
use serde_json::json;

use super::upgrade::Ending;

/// How a session ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// In order; of a command, with exit code 0.
    Success,
    /// The command's exit code, which is not 0.
    Exit(i32),
    /// It could not be done.
    Failed(String),
}

/// What is written on the error stream, if anything.
#[must_use]
pub fn told(ending: Ending, outcome: &Outcome) -> Option<Bytes> {
    let status = match (ending, outcome) {
        (Ending::Text, Outcome::Success) => return None,
        (Ending::Text, outcome) => return Some(Bytes::from(message(outcome))),
        (Ending::Status, Outcome::Success) => json!({ "metadata": {}, "status": "Success" }),
        (Ending::Status, Outcome::Exit(code)) => json!({
            "metadata": {},
            "status": "Failure",
            "message": message(outcome),
            // The names by which clients find the code (k8s.io/apimachinery, remotecommand).
            "reason": "NonZeroExitCode",
            "details": { "causes": [{ "reason": "ExitCode", "message": code.to_string() }] },
        }),
        (Ending::Status, Outcome::Failed(why)) => json!({
            "metadata": {},
            "status": "Failure",
            "message": message(outcome),
            "reason": "InternalError",
            "details": { "causes": [{ "message": why }] },
            "code": 500,
        }),
    };
    Some(Bytes::from(status.to_string()))
}

fn message(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Success => String::new(),
        Outcome::Exit(code) => format!("command terminated with non-zero exit code: exit status {code}"),
        Outcome::Failed(why) => format!("Internal error occurred: {why}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(outcome: &Outcome) -> serde_json::Value {
        serde_json::from_slice(&told(Ending::Status, outcome).unwrap()).unwrap()
    }

    #[test]
    fn kubectl_finds_the_exit_code() {
        let status = json(&Outcome::Exit(42));
        assert_eq!((&status["reason"], &status["status"]), (&json!("NonZeroExitCode"), &json!("Failure")));
        assert_eq!(status["details"]["causes"][0], json!({ "reason": "ExitCode", "message": "42" }));
        assert_eq!(json(&Outcome::Success)["status"], "Success");
        assert_eq!(json(&Outcome::Failed("no".to_owned()))["message"], "Internal error occurred: no");
    }

    #[test]
    fn older_clients_are_told_errors_as_text() {
        assert_eq!(told(Ending::Text, &Outcome::Success), None);
        let told = told(Ending::Text, &Outcome::Exit(3)).unwrap();
        assert_eq!(told, "command terminated with non-zero exit code: exit status 3");
    }
}
