//! The commands of a plugin (CNI specification).

use serde_json::Value;

use crate::Result;
use crate::call::Call;
use crate::external::{Program, Search};
use crate::ipam::Ipam;
use crate::result::CniResult;

/// The implementation of a plugin type: the built-in plugin, or a program for keys that the built-in one does not support.
pub(crate) enum Choice<T> {
    BuiltIn(T),
    Program(Program),
}

/// A plugin of one network, with its configuration.
pub(crate) trait Commands: Sized {
    /// Compiles and checks the configuration of a built-in plugin. Errors begin with the key.
    fn read(kind: &str, config: &Value, search: &Search) -> std::result::Result<Choice<Self>, String>;

    /// `ADD`: attaches a pod. After an error, nothing remains except what `del` removes.
    async fn add(&self, call: &Call<'_>, config: &Value, previous: CniResult) -> Result<CniResult>;

    /// `DEL`: detaches a pod. Parts that are not attached are skipped.
    async fn del(&self, call: &Call<'_>, config: &Value, previous: &CniResult) -> Result<()>;

    /// `CHECK`: checks that an attachment is unchanged.
    async fn check(&self, call: &Call<'_>, config: &Value, previous: &CniResult) -> Result<()>;

    /// Installs the rules of an attachment again and returns whether it has any. Links are not changed.
    async fn restore(&self, _call: &Call<'_>, _result: &CniResult) -> Result<bool> {
        Ok(false)
    }

    /// `STATUS`: whether the plugin can attach a pod (since 1.1).
    async fn status(&self, call: &Call<'_>, config: &Value) -> Result<()> {
        match self.ipam() {
            Some(ipam) => ipam.status(call, config).await,
            None => Ok(()),
        }
    }

    /// Whether the plugin changes an interface that another plugin has created.
    fn is_chained(&self) -> bool {
        false
    }

    /// The IPAM part of the plugin.
    fn ipam(&self) -> Option<&Ipam> {
        None
    }

    /// Returns the link through which the host receives packets of pods to forward; `None` if they bypass the host.
    fn routes_by(&self) -> Option<String> {
        None
    }
}
