//! The hooks of a container, and their standard input (OCI runtime specification, "POSIX-platform Hooks" and
//! "State").

use std::path::Path;

use oci_spec::runtime::{Hook, Spec};
use serde_json::json;

use super::{CompileError, Context, Result, invalid, path_text, text};
use crate::plan::{HookPlan, Hooks};

/// Compiles the `createContainer` hooks, which change the root filesystem. Hooks of other kinds are not supported.
pub(super) fn compile(spec: &Spec, context: &Context<'_>) -> Result<Option<Hooks>> {
    let Some(hooks) = spec.hooks() else { return Ok(None) };
    let unsupported = |field: &str| Err(CompileError::Unsupported { field: field.to_owned() });
    let prestart = hooks.prestart();
    for (field, hooks) in [
        ("hooks.prestart", prestart),
        ("hooks.createRuntime", hooks.create_runtime()),
        ("hooks.startContainer", hooks.start_container()),
        ("hooks.poststart", hooks.poststart()),
        ("hooks.poststop", hooks.poststop()),
    ] {
        if hooks.iter().flatten().next().is_some() {
            return unsupported(field);
        }
    }
    let hooks = hooks.create_container().iter().flatten();
    let create_container = hooks.map(compile_one).collect::<Result<Vec<_>>>()?;
    if create_container.is_empty() {
        return Ok(None);
    }
    // Root of the user namespace can access neither the root filesystem nor the spec at the paths that hooks get.
    if context.users.is_some() {
        return unsupported("hooks.createContainer in a pod with a user namespace");
    }
    let root = spec.root().as_ref().ok_or(CompileError::Missing("root"))?;
    let root = path_text("root.path", &context.bundle.join(root.path()))?;
    Ok(Some(Hooks { root, state: state(spec, context.bundle)?, create_container }))
}

fn compile_one(hook: &Hook) -> Result<HookPlan> {
    let path = path_text("hooks.createContainer.path", hook.path())?;
    if !path.starts_with('/') {
        return Err(invalid("hooks.createContainer.path", path, "is not absolute"));
    }
    let list = |field: &str, list: &Option<Vec<String>>| -> Result<Vec<String>> {
        list.iter().flatten().map(|item| text(field, item)).collect()
    };
    let timeout = hook.timeout().map(|seconds| match u32::try_from(seconds) {
        Ok(seconds) if seconds > 0 => Ok(seconds),
        _ => Err(invalid(
            "hooks.createContainer.timeout",
            seconds.to_string(),
            "is not a positive number of seconds",
        )),
    });
    Ok(HookPlan {
        path,
        args: list("hooks.createContainer.args", hook.args())?,
        env: list("hooks.createContainer.env", hook.env())?,
        timeout: timeout.transpose()?,
    })
}

/// Returns the state of a container that is being created. The name of the bundle's folder is the container's id.
fn state(spec: &Spec, bundle: &Path) -> Result<String> {
    let id = bundle.file_name().map(Path::new).map_or(Ok(String::new()), |id| path_text("id", id))?;
    let state = json!({
        "ociVersion": spec.version(),
        "id": id,
        "status": "creating",
        "bundle": path_text("bundle", bundle)?,
        "annotations": spec.annotations().clone().unwrap_or_default(),
        "pid": "PID",
    });
    Ok(state.to_string())
}
