//! Checks a request before anything is done for it. Names and values become parts of file names, of resolv.conf and of
//! sysctls: values with a special meaning there are refused, with an error that names the field.
//!
//! * [`pod`](mod@pod), [`container`](mod@container): the requests; [`text`]: texts, names, paths and maps

mod container;
mod pod;
mod text;

use berth_proto::v1::{NamespaceMode, NamespaceOption};

use super::{Result, error};
pub use container::container;
pub use pod::pod;
pub use text::annotations;

/// Checks namespace modes. The network and IPC namespaces are the pod's or the host's (CRI `NamespaceOption`); only a
/// container can join the PID namespace of another one.
fn modes(options: &NamespaceOption, of_container: bool) -> Result<()> {
    for (field, mode) in [("network", options.network), ("ipc", options.ipc)] {
        let field = format!("namespace_options.{field}");
        match NamespaceMode::try_from(mode) {
            Ok(NamespaceMode::Pod | NamespaceMode::Node) => {}
            Ok(mode) => {
                return Err(error(
                    field,
                    format!("{} is not supported; POD and NODE are", mode.as_str_name()),
                ));
            }
            Err(_) => return Err(error(field, format!("{mode} is not a mode"))),
        }
    }
    let field = "namespace_options.pid";
    match NamespaceMode::try_from(options.pid) {
        Ok(NamespaceMode::Target) if !of_container => {
            Err(error(field, "TARGET is only valid for containers"))
        }
        Ok(NamespaceMode::Target) if options.target_id.is_empty() => {
            Err(error("namespace_options.target_id", "is empty, and pid is TARGET"))
        }
        Ok(_) => Ok(()),
        Err(_) => Err(error(field, format!("{} is not a mode", options.pid))),
    }
}

/// Checks the runtime handler in `field` of a request; an empty name is the default.
///
/// # Errors
/// No runtime handler has that name.
pub fn runtime_handler(handlers: &[String], field: &str, handler: &str) -> Result<()> {
    if handler.is_empty() || handlers.iter().any(|known| known == handler) {
        return Ok(());
    }
    Err(error(field, format!("no runtime handler {handler:?} is configured")))
}

#[cfg(test)]
mod tests;
