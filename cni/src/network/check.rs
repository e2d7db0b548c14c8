//! Checks the network of a pod (`CHECK`).

use std::os::fd::BorrowedFd;

use super::{Network, PluginParameters};
use crate::version::Version;
use crate::{Error, Result};

impl Network {
    /// Checks that a pod's network is unchanged (`CHECK`).
    ///
    /// # Errors
    /// The first difference, or the pod is not attached.
    pub async fn check(&self, pod: &str, netns: BorrowedFd<'_>) -> Result<()> {
        let record = self.shared.records.read(pod).await?;
        let record = record.ok_or_else(|| Error::Invalid(format!("pod {pod} is not attached")))?;
        let result = record.result.clone();
        let result = result.ok_or_else(|| Error::Invalid(format!("pod {pod} is only partly attached")))?;
        let config = self.shared.configuration.recorded(&record.made_by())?;
        if config.disable_check || config.version < Version::V0_4_0 {
            return Ok(());
        }
        let parameters = PluginParameters::of(&record);
        for entry in &config.plugins {
            let runtime = parameters.of_entry(entry)?;
            let call = self.call(&config, pod, Some(netns), &record, &runtime, &parameters);
            entry.plugin.check(&call, &entry.config, &result).await?;
        }
        Ok(())
    }
}
