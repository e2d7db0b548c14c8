//! Adds hooks to a spec (OCI runtime specification, "POSIX-platform Hooks").

use berth_runtime::plan::HookKind;
use oci_spec::runtime::{Hook, Spec};

/// Adds a hook after those of its kind.
#[allow(deprecated, reason = "prestart hooks are deprecated in the specification, but still valid")]
pub fn add(spec: &mut Spec, kind: HookKind, hook: Hook) {
    let mut hooks = spec.hooks().clone().unwrap_or_default();
    let with = |existing: &Option<Vec<Hook>>| {
        Some(existing.iter().flatten().cloned().chain([hook.clone()]).collect::<Vec<_>>())
    };
    match kind {
        HookKind::Prestart => hooks.set_prestart(with(hooks.prestart())),
        HookKind::CreateRuntime => hooks.set_create_runtime(with(hooks.create_runtime())),
        HookKind::CreateContainer => hooks.set_create_container(with(hooks.create_container())),
        HookKind::StartContainer => hooks.set_start_container(with(hooks.start_container())),
        HookKind::Poststart => hooks.set_poststart(with(hooks.poststart())),
        HookKind::Poststop => hooks.set_poststop(with(hooks.poststop())),
    };
    spec.set_hooks(Some(hooks));
}
