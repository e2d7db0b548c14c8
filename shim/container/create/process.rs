//! The first process of a new container: its spec, its plan and its clone by the keeper.

use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;

use berth_image::WritableLayer;
use berth_runtime::cgroup::CgroupPath;
use berth_runtime::client::Placeholder;
use berth_runtime::plan::HookKind;
use berth_runtime::wire::{Call, Failure, Outcome};

use super::{ContainerBuilder, pod_not_ready};
use crate::blocking::blocking;
use crate::container::assemble::{self, Assembled, Draft};
use crate::container::{adjusted, hooks, out_of_memory};
use crate::daemon::Daemon;
use crate::error::CriError;
use crate::keeper::{KeeperClient, KeeperError};
use crate::store::Container;
use crate::systemd::ShutdownOrder;
impl ContainerBuilder {
    /// Starts the scope of the systemd driver. A scope needs a process from its start, the placeholder.
    pub(super) async fn start_scope(
        &mut self,
        container: &Container,
        draft: &Draft,
    ) -> Result<Option<Placeholder>, CriError> {
        let (cgroups, cgroup) = (self.daemon.cgroups.clone(), container.with(|record| record.cgroup.clone()));
        let recorded = cgroup.clone();
        self.undo.push("remove the cgroup", async move {
            cgroups.release(recorded).await.map_err(|error| error.to_string())
        });
        let mut limits = draft.limits();
        // systemd does not manage the devices.
        limits.set_devices(None);
        let annotation = |key: &str| self.config.annotations.get(key).map(String::as_str);
        let order = ShutdownOrder::of_container(self.pod.id.as_str(), annotation);
        self.daemon.cgroups.start_scope(&CgroupPath::from_recorded(&cgroup)?, &limits, &order).await
    }

    pub(super) async fn draft(
        &mut self,
        container: &Arc<Container>,
        layer: Arc<WritableLayer>,
        pause_pid: i32,
    ) -> Result<Draft, CriError> {
        let (daemon, pod, container) = (self.daemon.clone(), self.pod.clone(), container.clone());
        blocking(move || assemble::draft(&daemon, &pod, &container, &layer, pause_pid)).await
    }

    /// Has NRI plugins change the draft.
    pub(super) async fn call_nri(
        &mut self,
        container: &Arc<Container>,
        mut draft: Draft,
    ) -> Result<Draft, CriError> {
        let nri = self.daemon.pods.nri.clone();
        let creation = self.nri.insert(nri.plugins().begin(self.id.as_str()));
        if !creation.is_announced() {
            return Ok(draft);
        }
        let (undo_nri, undo_container) = (nri.clone(), container.clone());
        self.undo.push("notify NRI plugins", async move {
            undo_nri.undo_container(&undo_container).await;
            Ok(())
        });
        let changes = nri.create(&self.pod, container, draft.spec()).await?;
        let (others, evictions) = (changes.others.updates(), changes.others.evictions);
        if let Some(failed) = nri.plugins().apply(others, evictions).await.into_iter().next() {
            let what = format!("update container {} for an NRI plugin", failed.update.container_id);
            return Err(CriError::failed(what, failed.error));
        }
        let (cgroups, folders, changed) =
            (self.daemon.cgroups.clone(), self.daemon.config.cdi_spec_dirs.clone(), container.clone());
        blocking(move || {
            adjusted::adjust(&cgroups, &folders, &changed, &mut draft, &changes.adjustment)?;
            Ok::<_, CriError>(draft)
        })
        .await
    }

    /// Moves network devices of the host to the pod's namespace, which NRI plugins can request.
    pub(super) async fn move_devices(&mut self, devices: Vec<(String, String)>) -> Result<(), CriError> {
        for (device, name) in devices {
            let netns = self.pod.netns().ok_or_else(|| {
                CriError::failed(format!("move network device {device}"), "the pod is in the host's network")
            })?;
            let network = self.daemon.network.network.clone();
            network.move_device(&device, netns.as_fd(), &name).await?;
            self.undo.push("return a network device", async move {
                let returned = network.return_device(&device, netns.as_fd(), &name).await;
                returned.map_err(|error| error.to_string())
            });
        }
        Ok(())
    }

    pub(super) async fn assemble(
        &mut self,
        container: &Arc<Container>,
        layer: Arc<WritableLayer>,
        draft: Draft,
    ) -> Result<Assembled, CriError> {
        let (daemon, pod, container) = (self.daemon.clone(), self.pod.clone(), container.clone());
        blocking(move || {
            let Daemon { filters, cgroups, pods, .. } = &*daemon;
            assemble::build(filters, cgroups, &pods.store, &pod, &container, &layer, draft)
        })
        .await
    }

    pub(super) async fn create_process(
        &mut self,
        link: &KeeperClient,
        container: &Container,
        assembled: Assembled,
    ) -> Result<i32, CriError> {
        self.undo_runtime(container, assembled.runtime_hooks);
        let hooks = assembled.plan.hooks.as_ref();
        let poststop = hooks.map_or(Duration::ZERO, |hooks| hooks.longest(&[HookKind::Poststop]));
        let (forget, id) = (link.clone(), self.id.clone());
        self.undo.push("end the first process", async move {
            // The `poststop` hooks of a container whose creation has failed run before the answer.
            let call = Call::Forget { container: id.as_str().to_owned() };
            match forget.call_with(call, Vec::new(), poststop).await.map(drop) {
                Ok(()) | Err(KeeperError::Gone | KeeperError::Failure(Failure::NotFound { .. })) => Ok(()),
                Err(error) => Err(error.to_string()),
            }
        });
        let plan = Box::new(assembled.plan.clone());
        let folder = container.folder().display().to_string();
        let more = match container.runtime() {
            // The runtime runs the hooks.
            Some(_) => assembled.runtime_hooks,
            None => hooks.map_or(Duration::ZERO, |hooks| hooks.longest(&hooks::OF_CREATE)),
        };
        let call = Call::Create { container: self.id.as_str().to_owned(), folder, plan };
        match link.call_with(call, assembled.descriptors, more).await {
            Ok((Outcome::Created { pid }, _)) => Ok(pid),
            Ok((other, _)) => Err(KeeperError::Unexpected(format!("{other:?}")).into()),
            Err(KeeperError::Failure(Failure::Init(failure))) => {
                let why = berth_runtime::compile::explain(&failure, &assembled.plan);
                let hint = out_of_memory::hint(&self.daemon.cgroups, container, &failure).await;
                Err(CriError::failed(format!("create container {}", self.id), format!("{why}{hint}")))
            }
            Err(KeeperError::Failure(Failure::State { .. })) if self.ready_pod().is_err() => {
                Err(pod_not_ready(&self.pod))
            }
            Err(KeeperError::NoAnswer { timeout, keeper, .. }) => Err(CriError::deadline(format!(
                "failed to create container {}: its mounts are not ready after {} s ({keeper})",
                self.id,
                timeout.as_secs()
            ))),
            Err(error) => Err(error.into()),
        }
    }
}
