//! The hooks of a container, and their standard input (OCI runtime specification, "POSIX-platform Hooks" and
//! "State").

use std::path::Path;

use oci_spec::runtime::{Hook, Hooks as SpecHooks, Spec};
use serde_json::json;

use super::{CompileError, Result, invalid, path_text, text};
use crate::plan::{HookKind, HookPlan, Hooks};

/// Compiles the hooks of a spec in this folder. Root of a user namespace can access neither the root filesystem nor the
/// spec at the paths that `createContainer` hooks get, so such a container has none.
///
/// # Errors
/// A hook has an invalid field, or is not supported.
pub fn compile_hooks(spec: &Spec, id: &str, bundle: &Path, has_users: bool) -> Result<Option<Hooks>> {
    let Some(hooks) = spec.hooks() else { return Ok(None) };
    let of = |kind: HookKind| -> Result<Vec<HookPlan>> {
        list(hooks, kind).iter().flatten().map(|hook| compile_one(kind, hook)).collect()
    };
    let root = spec.root().as_ref().ok_or(CompileError::Missing("root"))?;
    let root = path_text("root.path", &bundle.join(root.path()))?;
    let hooks = Hooks {
        root: (!has_users).then_some(root),
        state: state(spec, id, bundle)?,
        prestart: of(HookKind::Prestart)?,
        create_runtime: of(HookKind::CreateRuntime)?,
        create_container: of(HookKind::CreateContainer)?,
        start_container: of(HookKind::StartContainer)?,
        poststart: of(HookKind::Poststart)?,
        poststop: of(HookKind::Poststop)?,
    };
    if has_users && hooks.has(HookKind::CreateContainer) {
        let field = "hooks.createContainer in a pod with a user namespace".to_owned();
        return Err(CompileError::Unsupported { field });
    }
    let has_hooks = hooks.all().next().is_some();
    Ok(has_hooks.then_some(hooks))
}

#[allow(deprecated, reason = "prestart hooks are deprecated in the specification, but still valid")]
fn list(hooks: &SpecHooks, kind: HookKind) -> &Option<Vec<Hook>> {
    match kind {
        HookKind::Prestart => hooks.prestart(),
        HookKind::CreateRuntime => hooks.create_runtime(),
        HookKind::CreateContainer => hooks.create_container(),
        HookKind::StartContainer => hooks.start_container(),
        HookKind::Poststart => hooks.poststart(),
        HookKind::Poststop => hooks.poststop(),
    }
}

fn compile_one(kind: HookKind, hook: &Hook) -> Result<HookPlan> {
    let field = |name: &str| format!("hooks.{}.{name}", kind.name());
    let path = path_text(&field("path"), hook.path())?;
    if !path.starts_with('/') {
        return Err(invalid(field("path"), path, "is not absolute"));
    }
    let list = |name: &str, list: &Option<Vec<String>>| -> Result<Vec<String>> {
        list.iter().flatten().map(|item| text(&field(name), item)).collect()
    };
    let timeout = hook.timeout().map(|seconds| match u32::try_from(seconds) {
        Ok(seconds) if seconds > 0 => Ok(seconds),
        _ => Err(invalid(field("timeout"), seconds.to_string(), "is not a positive number of seconds")),
    });
    Ok(HookPlan {
        path,
        args: list("args", hook.args())?,
        env: list("env", hook.env())?,
        timeout: timeout.transpose()?,
    })
}

/// Returns the state of a container that is being created. The placeholders come first: see [`Hooks::state_at`].
fn state(spec: &Spec, id: &str, bundle: &Path) -> Result<String> {
    let rest = json!({
        "ociVersion": spec.version(),
        "id": id,
        "bundle": path_text("bundle", bundle)?,
        "annotations": spec.annotations().clone().unwrap_or_default(),
    })
    .to_string();
    let rest = rest.strip_prefix('{').unwrap_or_default();
    Ok(format!("{{\"pid\":{},\"status\":{},{rest}", Hooks::PID, Hooks::STATUS))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(hooks: serde_json::Value) -> Spec {
        let spec = json!({
            "ociVersion": "1.3.0",
            "root": { "path": "rootfs" },
            "hooks": hooks,
            "annotations": { "a": "PID", "status": "creating" },
        });
        serde_json::from_value(spec).unwrap()
    }

    fn compile(hooks: serde_json::Value, has_users: bool) -> Result<Option<Hooks>> {
        compile_hooks(&spec(hooks), "c1", Path::new("/b/c1"), has_users)
    }

    #[test]
    fn every_kind_is_compiled() {
        let hook = |name: &str| json!([{ "path": format!("/{name}") }]);
        let kinds = HookKind::ALL.map(HookKind::name);
        let all: serde_json::Map<_, _> = kinds.iter().map(|kind| ((*kind).to_owned(), hook(kind))).collect();
        let compiled = compile(all.into(), false).unwrap().unwrap();
        let seen: Vec<_> = compiled.all().map(|(kind, hook)| (kind.name(), hook.path.clone())).collect();
        assert_eq!(seen, kinds.map(|kind| (kind, format!("/{kind}"))));
        assert_eq!(compiled.root.as_deref(), Some("/b/c1/rootfs"));
        assert_eq!(compiled.of(HookKind::Poststart).map(|(index, _)| index).collect::<Vec<_>>(), [4]);
        assert_eq!(compile(json!({ "poststop": [] }), false).unwrap(), None);
    }

    #[test]
    fn the_state_has_the_pid_and_the_status_of_the_kind() {
        let compiled = compile(json!({ "poststop": [{ "path": "/x" }] }), false).unwrap().unwrap();
        let state: serde_json::Value =
            serde_json::from_str(&compiled.state_at(HookKind::Poststop, 42)).unwrap();
        assert_eq!(
            state,
            json!({
                "ociVersion": "1.3.0", "id": "c1", "status": "stopped", "pid": 0, "bundle": "/b/c1",
                "annotations": { "a": "PID", "status": "creating" },
            })
        );
    }

    #[test]
    fn invalid_hooks_are_rejected_with_their_field() {
        for (hooks, users, expected) in [
            (json!({ "poststart": [{ "path": "x" }] }), false, "hooks.poststart.path"),
            (json!({ "prestart": [{ "path": "/x", "timeout": 0 }] }), false, "hooks.prestart.timeout"),
            (
                json!({ "startContainer": [{ "path": "/x", "env": ["A=\0"] }] }),
                false,
                "hooks.startContainer.env",
            ),
            (json!({ "createContainer": [{ "path": "/x" }] }), true, "user namespace"),
        ] {
            let error = compile(hooks, users).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        assert!(compile(json!({ "createRuntime": [{ "path": "/x" }] }), true).unwrap().is_some());
    }
}
