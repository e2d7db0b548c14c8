//! Describes the failure of a first process. The process itself reports only a step, an index and an errno. The
//! daemon's plan contains the object with this index.

use std::io;

use crate::plan::{ContainerPlan, MountKind, MountOp};
use crate::wire::{InitFailure, Step};

/// Describes a failure, with the plan's object that it is about.
#[must_use]
pub fn explain(failure: &InitFailure, plan: &ContainerPlan) -> String {
    let Some(object) = object(failure, plan) else { return failure.to_string() };
    let mut text = format!("{} {object}", failure.step.description());
    if failure.errno != 0 {
        text.push_str(&format!(": {}", io::Error::from_raw_os_error(failure.errno)));
    }
    if !failure.detail.is_empty() {
        text.push_str(&format!(" [{}]", failure.detail));
    }
    text
}

fn object(failure: &InitFailure, plan: &ContainerPlan) -> Option<String> {
    let index = usize::try_from(failure.index.unwrap_or(0)).ok()?;
    match failure.step {
        Step::OpenSource
        | Step::Peers
        | Step::PodShm
        | Step::PodProc
        | Step::MountTarget
        | Step::Mount
        | Step::MountAttributes => {
            failure.index?;
            plan.mounts.get(index).map(|op| describe(op, index))
        }
        Step::Device => plan.devices.get(index).map(|device| device.path.clone()),
        Step::Directory => plan.directories.iter().chain([&plan.process.cwd]).nth(index).cloned(),
        Step::Sysctl => plan.sysctls.get(index).map(|(name, value)| format!("{name} to {value:?}")),
        Step::ReadonlyPath => plan.readonly_paths.get(index).cloned(),
        Step::MaskedPath => plan.masked_paths.get(index).cloned(),
        Step::Rlimit => plan.process.rlimits.get(index).map(|limit| format!("{limit:?}")),
        Step::Hook => {
            let (kind, hook) = plan.hooks.as_ref()?.all().nth(index)?;
            Some(format!("{} ({})", hook.path, kind.name()))
        }
        Step::WorkingDirectory => Some(plan.process.cwd.clone()),
        Step::Exec => plan.process.args.first().map(|program| format!("{program:?}")),
        Step::Credentials => Some(format!("{}:{}", plan.process.uid, plan.process.gid)),
        _ => None,
    }
}

fn describe(op: &MountOp, index: usize) -> String {
    let from = match &op.kind {
        MountKind::Bind { source, .. } => format!(", from {source}"),
        MountKind::Filesystem { fstype, .. } => format!(", a new {fstype}"),
        _ => String::new(),
    };
    format!("{} (mount {index}{from})", op.target)
}
