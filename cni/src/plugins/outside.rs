//! Plugins that are not built in: programs, and programs that are gone.

use serde_json::Value;

use super::commands::{Choice, Commands};
use crate::call::Call;
use crate::external::{Program, Search, find};
use crate::result::CniResult;
use crate::version::Version;
use crate::{Error, Result};

impl Commands for Program {
    fn read(kind: &str, _config: &Value, search: &Search) -> std::result::Result<Choice<Self>, String> {
        find(kind, search).map(Choice::Program)
    }

    async fn add(&self, call: &Call<'_>, config: &Value, previous: CniResult) -> Result<CniResult> {
        let recorded = previous.to_value(call.version);
        let recorded = (previous != CniResult::default()).then_some(&recorded);
        let answer = self.run(call, "ADD", config, recorded).await?;
        CniResult::parse(&answer).map_err(|why| self.failed(why))
    }

    async fn del(&self, call: &Call<'_>, config: &Value, previous: &CniResult) -> Result<()> {
        let recorded = previous.to_value(call.version);
        // Versions before 0.4.0 do not pass the result.
        let has_result = call.version >= Version::V0_4_0 && *previous != CniResult::default();
        self.run(call, "DEL", config, has_result.then_some(&recorded)).await.map(drop)
    }

    async fn check(&self, call: &Call<'_>, config: &Value, previous: &CniResult) -> Result<()> {
        let recorded = previous.to_value(call.version);
        self.run(call, "CHECK", config, Some(&recorded)).await.map(drop)
    }

    async fn status(&self, call: &Call<'_>, config: &Value) -> Result<()> {
        match call.version >= Version::V1_1_0 {
            true => self.run(call, "STATUS", config, None).await.map(drop),
            false => Ok(()),
        }
    }
}

/// A plugin of a recorded configuration that does not exist any longer. Its commands fail.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Missing {
    /// Why it does not exist.
    pub(super) why: String,
}

impl Missing {
    fn error(&self) -> Error {
        Error::Plugin { plugin: "of an earlier configuration".to_owned(), message: self.why.clone() }
    }
}

impl Commands for Missing {
    fn read(kind: &str, _config: &Value, search: &Search) -> std::result::Result<Choice<Self>, String> {
        find(kind, search).map(Choice::Program)
    }

    async fn add(&self, _call: &Call<'_>, _config: &Value, _previous: CniResult) -> Result<CniResult> {
        Err(self.error())
    }

    async fn del(&self, _call: &Call<'_>, _config: &Value, _previous: &CniResult) -> Result<()> {
        Err(self.error())
    }

    async fn check(&self, _call: &Call<'_>, _config: &Value, _previous: &CniResult) -> Result<()> {
        Err(self.error())
    }
}
