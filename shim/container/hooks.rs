//! The daemon's part of a container's hooks: the time that they take, and their failures. The pod's keeper runs them.
//! Only if the keeper was killed does the daemon run the `poststop` hooks.

use std::sync::Arc;
use std::time::Duration;

use berth_runtime::compile::{compile_hooks, compile_users};
use berth_runtime::hooks;
use berth_runtime::plan::{HookKind, Hooks};
use berth_runtime::wire::{InitFailure, Step};
use oci_spec::runtime::Spec;

use crate::blocking::blocking;
use crate::error::CriError;
use crate::host::boot_id;
use crate::store::Container;

/// The kinds of hooks that run while a container is created.
pub(super) const OF_CREATE: [HookKind; 3] =
    [HookKind::Prestart, HookKind::CreateRuntime, HookKind::CreateContainer];

/// Returns the longest time that the hooks of these kinds take.
pub(super) async fn longest(container: &Arc<Container>, kinds: &[HookKind]) -> Duration {
    let spec = match container.spec.in_memory() {
        Some(spec) => Some(spec),
        None => {
            let container = container.clone();
            blocking(move || container.spec.whole()).await.ok().map(Arc::new)
        }
    };
    let hooks = spec.and_then(|spec| hooks_of(&spec, container));
    hooks.map_or(Duration::ZERO, |hooks| hooks.longest(kinds))
}

fn hooks_of(spec: &Spec, container: &Container) -> Option<Hooks> {
    // The spec was compiled before, when the container was created.
    compile_hooks(spec, container.id.as_str(), container.folder(), compile_users(spec).is_some())
        .ok()
        .flatten()
}

/// Describes the failure of a hook with the hook's path. Returns none for another failure.
pub(super) fn explain(spec: &Spec, container: &Container, failure: &InitFailure) -> Option<String> {
    if failure.step != Step::Hook {
        return None;
    }
    let hooks = hooks_of(spec, container)?;
    let (kind, hook) = hooks.all().nth(usize::try_from(failure.index?).ok()?)?;
    let why = match failure.errno {
        0 => failure.detail.clone(),
        errno => format!("{}: {}", failure.detail, std::io::Error::from_raw_os_error(errno)),
    };
    Some(format!("{} hook {} failed: {why}", kind.name(), hook.path))
}

/// Logs the failure of a `poststop` hook and adds it to the container's exit.
pub(crate) async fn record_failure(container: &Arc<Container>, failure: &InitFailure) {
    let (read, failure) = (container.clone(), failure.clone());
    let text = blocking(move || {
        let spec = read.spec.whole()?;
        Ok::<_, CriError>(explain(&spec, &read, &failure).unwrap_or_else(|| failure.to_string()))
    });
    let text = text.await.unwrap_or_else(|error| error.to_string());
    tracing::warn!(container = container.id.as_str(), error = text, "failed to run a poststop hook");
    container.transition(|state| state.with_exit_note(&text));
}

/// Runs the `poststop` hooks of a container whose keeper was killed before the container had ended. After a reboot,
/// nothing is left that they could undo.
pub(crate) async fn run_poststop(container: &Arc<Container>) {
    if container.runtime().is_some() {
        // The OCI runtime runs them when the container is removed.
        return;
    }
    let ended = container.clone();
    let run = blocking(move || {
        let boot_id = boot_id().map_err(|error| CriError::internal("read the boot id", error))?;
        if ended.with(|record| record.boot_id != boot_id) {
            return Ok(None);
        }
        let hooks = hooks_of(&ended.spec.whole()?, &ended);
        let hooks = hooks.filter(|hooks| hooks.has(HookKind::Poststop));
        Ok::<_, CriError>(hooks.and_then(|hooks| hooks::run(&hooks, HookKind::Poststop, 0, None).err()))
    });
    match run.await {
        Ok(None) => {}
        Ok(Some(failure)) => record_failure(container, &failure).await,
        Err(error) => {
            tracing::warn!(container = container.id.as_str(), %error, "failed to run the poststop hooks");
        }
    }
}
