//! The systemd cgroup driver. The cgroup of each pod and container is a systemd scope below the slice that the
//! kubelet names, so that systemd knows it and does not change it (org.freedesktop.systemd1(5), CGROUP_DELEGATION).
//! The driver calls systemd over D-Bus.
//!
//! * this file: creates scopes and updates their limits
//! * [`properties`]: converts limits to systemd's properties
//! * [`shutdown`]: when systemd stops a scope, and how long it waits

mod properties;
mod shutdown;

use std::time::Duration;

use berth_runtime::cgroup::{CgroupPath, Version};
use berth_runtime::client::{Placeholder, Programs};
use futures_util::StreamExt;
use oci_spec::runtime::LinuxResources;
use tokio::sync::Mutex;

use zbus::{Connection, ObjectPath, OwnedObjectPath, Variant};

use crate::blocking::blocking;
use crate::error::CriError;

pub use shutdown::ShutdownOrder;

/// The time limit for the start of a scope.
const PATIENCE: Duration = Duration::from_secs(30);

/// The slice of pods without a requested one, as in runc.
pub const DEFAULT_SLICE: &str = "system.slice";

/// The D-Bus error for a unit that does not exist.
const NO_SUCH_UNIT: &str = "org.freedesktop.systemd1.NoSuchUnit";

#[zbus::proxy(
    interface = "org.freedesktop.systemd1.Manager",
    default_service = "org.freedesktop.systemd1",
    default_path = "/org/freedesktop/systemd1"
)]
trait Manager {
    fn subscribe(&self) -> zbus::Result<()>;

    fn start_transient_unit(
        &self,
        name: &str,
        mode: &str,
        properties: &[(&str, Variant<'_>)],
        auxiliary: &[(&str, &[(&str, Variant<'_>)])],
    ) -> zbus::Result<OwnedObjectPath>;

    fn set_unit_properties(
        &self,
        name: &str,
        runtime: bool,
        properties: &[(&str, Variant<'_>)],
    ) -> zbus::Result<()>;

    #[zbus(signal)]
    fn job_removed(&self, id: u32, job: ObjectPath<'_>, unit: &str, result: &str) -> zbus::Result<()>;
}

/// The connection to systemd. It is made when it is first needed, and again after a restart of the bus.
#[derive(Debug, Default)]
pub struct Systemd {
    manager: Mutex<Option<ManagerProxy<'static>>>,
}

/// Returns the name of a scope in a pod's slice. Tools find the id of the container in it.
#[must_use]
pub fn scope_name(id: &str) -> String {
    format!("berth-{id}.scope")
}

/// Returns the path of a scope in an OCI spec (runc, "Systemd cgroup driver").
#[must_use]
pub fn spec_path(slice: &str, id: &str) -> String {
    format!("{slice}:berth:{id}")
}

fn failed(operation: &str, error: impl std::fmt::Display) -> CriError {
    CriError::failed(format!("{operation} in systemd"), error.to_string())
}

impl Systemd {
    /// Starts the scope of a cgroup. Returns the placeholder process that holds it until another process is in the cgroup.
    ///
    /// # Errors
    /// systemd cannot be reached or refuses.
    pub async fn start_scope(
        &self,
        programs: &Programs,
        version: Version,
        cgroup: &CgroupPath,
        resources: &LinuxResources,
        order: &ShutdownOrder,
    ) -> Result<Placeholder, CriError> {
        let placeholder = programs.placeholder().map_err(CriError::from)?;
        let (Some(scope), Some(slice)) = (cgroup.leaf(), cgroup.parent().leaf().map(str::to_owned)) else {
            return Err(CriError::internal("start a scope", format!("{cgroup} is not in a slice")));
        };
        let limits = properties::of(resources, version == Version::V2);
        let description = format!("berth {scope}");
        let mut properties = properties::of_scope(&slice, &description, placeholder.pid());
        properties.extend(order.properties());
        properties.extend(limits);
        self.start(scope, &properties).await?;
        Ok(placeholder)
    }

    /// Sends new limits to systemd, which would otherwise restore its own. A scope that does not exist is ignored.
    ///
    /// # Errors
    /// systemd cannot be reached or refuses.
    pub async fn set_limits(
        &self,
        version: Version,
        cgroup: &CgroupPath,
        resources: &LinuxResources,
    ) -> Result<(), CriError> {
        self.set_properties(cgroup, properties::of(resources, version == Version::V2)).await
    }

    /// Restores the limits of before an update in systemd. A limit that was not set before is unset.
    ///
    /// # Errors
    /// As [`Self::set_limits`].
    pub async fn restore_limits(
        &self,
        version: Version,
        cgroup: &CgroupPath,
        before: &LinuxResources,
        after: &LinuxResources,
    ) -> Result<(), CriError> {
        self.set_properties(cgroup, properties::restored(before, after, version == Version::V2)).await
    }

    async fn set_properties(
        &self,
        cgroup: &CgroupPath,
        limits: Vec<properties::Property>,
    ) -> Result<(), CriError> {
        let Some(scope) = cgroup.leaf().filter(|leaf| leaf.ends_with(".scope") && !limits.is_empty()) else {
            return Ok(());
        };
        let mut set = self.set(scope, &limits).await;
        if self.was_disconnected(set.as_ref().err()).await {
            set = self.set(scope, &limits).await;
        }
        match set {
            Err(zbus::Error::MethodError(name, ..)) if name.as_str() == NO_SUCH_UNIT => Ok(()),
            result => result.map_err(|error| failed(&format!("change the limits of {scope}"), error)),
        }
    }

    async fn manager(&self) -> zbus::Result<ManagerProxy<'static>> {
        let mut connection = self.manager.lock().await;
        if let Some(manager) = &*connection {
            return Ok(manager.clone());
        }
        let manager = ManagerProxy::new(&Connection::system().await?).await?;
        // Without the subscription systemd sends no signals about jobs.
        manager.subscribe().await?;
        Ok(connection.insert(manager).clone())
    }

    /// Whether a call failed because its connection was closed. The next call makes a new connection.
    async fn was_disconnected(&self, error: Option<&zbus::Error>) -> bool {
        let Some(zbus::Error::InputOutput(error)) = error else { return false };
        tracing::info!(%error, "the D-Bus connection was closed; reconnecting");
        self.manager.lock().await.take().is_some()
    }

    async fn set(&self, scope: &str, properties: &[(&'static str, Variant<'_>)]) -> zbus::Result<()> {
        self.manager().await?.set_unit_properties(scope, true, properties).await
    }

    /// Starts a scope and waits for its job. Returns the result of the job, or none if the connection was closed
    /// before.
    async fn run(
        &self,
        scope: &str,
        properties: &[(&'static str, Variant<'_>)],
    ) -> zbus::Result<Option<String>> {
        let manager = self.manager().await?;
        let mut removed = manager.receive_job_removed().await?;
        let job = manager.start_transient_unit(scope, "replace", properties, &[]).await?;
        while let Some(signal) = removed.next().await {
            let signal = signal.args()?;
            if *signal.job() == *job {
                return Ok(Some(signal.result().to_string()));
            }
        }
        Ok(None)
    }

    async fn start(&self, scope: &str, properties: &[(&'static str, Variant<'_>)]) -> Result<(), CriError> {
        let operation = format!("start {scope}");
        let started = async {
            let started = self.run(scope, properties).await;
            match self.was_disconnected(started.as_ref().err()).await {
                true => self.run(scope, properties).await,
                false => started,
            }
        };
        match tokio::time::timeout(PATIENCE, started).await {
            Ok(Ok(Some(result))) if result == "done" => Ok(()),
            Ok(Ok(Some(result))) => Err(failed(&operation, format!("its job has ended as {result}"))),
            Ok(Ok(None)) => Err(failed(&operation, "the connection was closed")),
            Ok(Err(error)) => Err(failed(&operation, format!("over D-Bus: {error}"))),
            Err(_) => {
                let seconds = PATIENCE.as_secs();
                Err(CriError::deadline(format!(
                    "failed to {operation} in systemd: no result after {seconds} s"
                )))
            }
        }
    }
}

/// Ends a placeholder and waits for its exit, which blocks.
pub async fn release(placeholder: Option<Placeholder>) {
    let released = blocking(move || -> Result<(), CriError> {
        drop(placeholder);
        Ok(())
    });
    if let Err(error) = released.await {
        tracing::warn!(%error, "failed to end the placeholder of a scope");
    }
}
