//! The systemd cgroup driver: the cgroup of each pod and container is a scope of systemd's, below the slice that the
//! kubelet names, so that systemd knows it and leaves it alone (org.freedesktop.systemd1(5), CGROUP_DELEGATION). It is
//! asked over D-Bus.
//!
//! * this file: making a scope, and telling systemd of new limits
//! * [`properties`]: limits in systemd's words

mod properties;

use std::time::Duration;

use berth_runtime::cgroup::{CgroupPath, Version};
use berth_runtime::client::Placeholder;
use futures_util::StreamExt;
use oci_spec::runtime::LinuxResources;
use tokio::sync::Mutex;

use zbus::{Connection, ObjectPath, OwnedObjectPath, Variant};

use crate::daemon::{Daemon, blocking};
use crate::error::CriError;

/// How long systemd may take for a scope.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where pods are whose client names no slice, as with runc.
pub const DEFAULT_SLICE: &str = "system.slice";

/// What systemd calls a unit that is there no more.
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

/// The connection to systemd, made when it is first needed, and again where the bus was started anew.
#[derive(Debug, Default)]
pub struct Systemd {
    manager: Mutex<Option<ManagerProxy<'static>>>,
}

/// The name of a scope in a pod's slice: tools find the id of a container in it.
#[must_use]
pub fn scope_name(id: &str) -> String {
    format!("berth-{id}.scope")
}

/// How the OCI spec names a scope (runc, "Systemd cgroup driver").
#[must_use]
pub fn spec_path(slice: &str, id: &str) -> String {
    format!("{slice}:berth:{id}")
}

/// Makes the scope for a cgroup. The answer is the process that holds it: it may go when another one is in the cgroup.
///
/// # Errors
/// systemd cannot be reached or refuses.
pub async fn start_scope(
    daemon: &Daemon,
    cgroup: &CgroupPath,
    resources: &LinuxResources,
) -> Result<Placeholder, CriError> {
    let placeholder = daemon.programs.placeholder().map_err(CriError::from)?;
    let (Some(scope), Some(slice)) = (cgroup.leaf(), cgroup.parent().leaf().map(str::to_owned)) else {
        return Err(CriError::internal("make a scope", format!("{cgroup} is in no slice")));
    };
    let limits = properties::of(resources, daemon.hierarchies.version() == Version::V2);
    let description = format!("berth {scope}");
    let mut wanted = properties::of_scope(&slice, &description, placeholder.pid());
    wanted.extend(limits);
    daemon.systemd.start(scope, &wanted).await?;
    Ok(placeholder)
}

/// Tells systemd of new limits, which it would set back to its own otherwise. A scope that is gone needs none.
///
/// # Errors
/// systemd cannot be reached or refuses.
pub async fn set_limits(
    daemon: &Daemon,
    cgroup: &CgroupPath,
    resources: &LinuxResources,
) -> Result<(), CriError> {
    set_properties(daemon, cgroup, properties::of(resources, daemon.hierarchies.is_v2())).await
}

/// Tells systemd that the limits of before hold again. Of what had none then, there is none again.
///
/// # Errors
/// As [`set_limits`].
pub async fn set_limits_back(
    daemon: &Daemon,
    cgroup: &CgroupPath,
    before: &LinuxResources,
    after: &LinuxResources,
) -> Result<(), CriError> {
    set_properties(daemon, cgroup, properties::back(before, after, daemon.hierarchies.is_v2())).await
}

async fn set_properties(
    daemon: &Daemon,
    cgroup: &CgroupPath,
    limits: Vec<properties::Property>,
) -> Result<(), CriError> {
    let Some(scope) = cgroup.leaf().filter(|leaf| leaf.ends_with(".scope") && !limits.is_empty()) else {
        return Ok(());
    };
    let mut set = daemon.systemd.set(scope, &limits).await;
    if daemon.systemd.was_cut_off(set.as_ref().err()).await {
        set = daemon.systemd.set(scope, &limits).await;
    }
    match set {
        Err(zbus::Error::MethodError(name, ..)) if name.as_str() == NO_SUCH_UNIT => Ok(()),
        result => result.map_err(|error| failed(&format!("change the limits of {scope}"), error)),
    }
}

fn failed(what: &str, error: impl std::fmt::Display) -> CriError {
    CriError::failed(format!("systemd: {what}"), error.to_string())
}

impl Systemd {
    async fn manager(&self) -> zbus::Result<ManagerProxy<'static>> {
        let mut kept = self.manager.lock().await;
        if let Some(manager) = &*kept {
            return Ok(manager.clone());
        }
        let manager = ManagerProxy::new(&Connection::system().await?).await?;
        // Without it no news of jobs is sent.
        manager.subscribe().await?;
        Ok(kept.insert(manager).clone())
    }

    /// Whether a call has failed since its connection had ended: the next one is made over a new one.
    async fn was_cut_off(&self, error: Option<&zbus::Error>) -> bool {
        let Some(zbus::Error::InputOutput(error)) = error else { return false };
        tracing::info!(%error, "the connection to D-Bus has ended: a new one is made");
        self.manager.lock().await.take().is_some()
    }

    async fn set(&self, scope: &str, properties: &[(&'static str, Variant<'_>)]) -> zbus::Result<()> {
        self.manager().await?.set_unit_properties(scope, true, properties).await
    }

    /// Starts a scope and waits for its job: how that has ended, unless the connection did before.
    async fn run(
        &self,
        scope: &str,
        properties: &[(&'static str, Variant<'_>)],
    ) -> zbus::Result<Option<String>> {
        let manager = self.manager().await?;
        let mut removed = manager.receive_job_removed().await?;
        let job = manager.start_transient_unit(scope, "replace", properties, &[]).await?;
        while let Some(news) = removed.next().await {
            let news = news.args()?;
            if *news.job() == *job {
                return Ok(Some(news.result().to_string()));
            }
        }
        Ok(None)
    }

    async fn start(&self, scope: &str, properties: &[(&'static str, Variant<'_>)]) -> Result<(), CriError> {
        let what = format!("start {scope}");
        let started = async {
            let started = self.run(scope, properties).await;
            match self.was_cut_off(started.as_ref().err()).await {
                true => self.run(scope, properties).await,
                false => started,
            }
        };
        match tokio::time::timeout(PATIENCE, started).await {
            Ok(Ok(Some(result))) if result == "done" => Ok(()),
            Ok(Ok(Some(result))) => Err(failed(&what, format!("its job has ended as {result}"))),
            Ok(Ok(None)) => Err(failed(&what, "the connection has ended")),
            Ok(Err(error)) => Err(failed(&what, format!("over D-Bus: {error}"))),
            Err(_) => Err(CriError::deadline(format!("systemd: {what} after {} s", PATIENCE.as_secs()))),
        }
    }
}

/// Ends a placeholder: waiting for it blocks.
pub async fn release(placeholder: Option<Placeholder>) {
    let released = blocking(move || -> Result<(), CriError> {
        drop(placeholder);
        Ok(())
    });
    if let Err(error) = released.await {
        tracing::warn!(%error, "end the placeholder of a scope");
    }
}
