//! Applies the merged changes of plugins to the OCI spec of a container.
//!
//! * this file: annotations, mounts, and the process
//! * [`linux`]: devices, namespaces, sysctls, the seccomp policy
//! * [`resources`]: limits, in both directions
//! * [`view`]: the container as plugins see it, from its spec

pub mod linux;
pub mod resources;
pub mod view;

use berth_proto::nri::{
    ContainerAdjustment, Hook, Hooks, IoPrioClass, KeyValue, LinuxIoPriority, LinuxScheduler,
    LinuxSchedulerFlag, LinuxSchedulerPolicy, Mount, PosixRlimit,
};
use berth_runtime::plan::HookKind;
use oci_spec::runtime::{Hook as OciHook, Mount as OciMount, PosixRlimit as OciRlimit, Process, Spec};
use serde::de::DeserializeOwned;

use super::owners::removal;
use crate::oci::{hooks, normal};

/// Applies changes to a spec. CDI devices and the path of the cgroup are left to the caller.
///
/// # Errors
/// The change that is invalid or not supported, and the reason.
pub fn apply(spec: &mut Spec, adjustment: &ContainerAdjustment, cgroup_v2: bool) -> Result<(), String> {
    apply_annotations(spec, adjustment);
    if let Some(requested) = &adjustment.hooks {
        add_hooks(spec, requested);
    }
    let linux = adjustment.linux.clone().unwrap_or_default();
    if let Some(process) = spec.process_mut() {
        apply_env(process, &adjustment.env);
        if !adjustment.args.is_empty() {
            process.set_args(Some(adjustment.args.clone()));
        }
        apply_rlimits(process, &adjustment.rlimits)?;
        if let Some(score) = &linux.oom_score_adj {
            let score = i32::try_from(score.value).ok().filter(|score| (-1000..=1000).contains(score));
            process.set_oom_score_adj(Some(score.ok_or("oom_score_adj is not from -1000 to 1000")?));
        }
        if let Some(priority) = &linux.io_priority {
            set_io_priority(process, priority)?;
        }
        if let Some(scheduler) = &linux.scheduler {
            process.set_scheduler(Some(scheduler_of(scheduler)?));
        }
    }
    linux::apply(spec, &linux)?;
    if let Some(resources) = &linux.resources {
        resources::apply(spec, resources, cgroup_v2)?;
    }
    apply_mounts(spec, &adjustment.mounts)
}

/// Reads a part of the spec from its JSON, so that all names are those of the specification.
fn parse<T: DeserializeOwned>(what: &str, value: serde_json::Value) -> Result<T, String> {
    serde_json::from_value(value).map_err(|error| format!("invalid {what}: {error}"))
}

fn apply_annotations(spec: &mut Spec, adjustment: &ContainerAdjustment) {
    let mut annotations = spec.annotations().clone().unwrap_or_default();
    // Removals come first: a plugin may replace an annotation.
    for (key, _) in adjustment.annotations.keys().map(|key| removal(key)).filter(|(_, removes)| *removes) {
        annotations.remove(key);
    }
    let set = adjustment.annotations.iter().filter(|(key, _)| !removal(key).1);
    annotations.extend(set.map(|(key, value)| (key.clone(), value.clone())));
    spec.set_annotations(Some(annotations));
}

fn add_hooks(spec: &mut Spec, requested: &Hooks) {
    let lists = [
        (HookKind::Prestart, &requested.prestart),
        (HookKind::CreateRuntime, &requested.create_runtime),
        (HookKind::CreateContainer, &requested.create_container),
        (HookKind::StartContainer, &requested.start_container),
        (HookKind::Poststart, &requested.poststart),
        (HookKind::Poststop, &requested.poststop),
    ];
    for (kind, hook) in lists.into_iter().flat_map(|(kind, list)| list.iter().map(move |hook| (kind, hook))) {
        hooks::add(spec, kind, hook_of(hook));
    }
}

fn hook_of(hook: &Hook) -> OciHook {
    let mut added = OciHook::default();
    added
        .set_path(hook.path.clone().into())
        .set_args(Some(hook.args.clone()).filter(|args| !args.is_empty()))
        .set_env(Some(hook.env.clone()))
        .set_timeout(hook.timeout.map(|timeout| timeout.value));
    added
}

fn apply_env(process: &mut Process, changes: &[KeyValue]) {
    let mut env = process.env().clone().unwrap_or_default();
    for change in changes {
        let (key, removes) = removal(&change.key);
        let is_same = |variable: &String| variable.split('=').next() == Some(key);
        let place = env.iter().position(is_same);
        env.retain(|variable| !is_same(variable));
        if !removes {
            let place = place.unwrap_or(env.len()).min(env.len());
            env.insert(place, format!("{key}={}", change.value));
        }
    }
    process.set_env(Some(env));
}

fn apply_rlimits(process: &mut Process, changes: &[PosixRlimit]) -> Result<(), String> {
    let mut limits = process.rlimits().clone().unwrap_or_default();
    for change in changes {
        let PosixRlimit { r#type, hard, soft } = change;
        let value = serde_json::json!({ "type": r#type, "hard": hard, "soft": soft });
        let limit: OciRlimit = parse(&format!("rlimit {type:?}"), value)?;
        limits.retain(|other| other.typ() != limit.typ());
        limits.push(limit);
    }
    process.set_rlimits(Some(limits));
    Ok(())
}

/// Class NONE removes the priority.
fn set_io_priority(process: &mut Process, priority: &LinuxIoPriority) -> Result<(), String> {
    if priority.class() == IoPrioClass::IoprioClassNone {
        process.set_io_priority(None);
        return Ok(());
    }
    let value = serde_json::json!({ "class": priority.class().as_str_name(), "priority": priority.priority });
    process.set_io_priority(Some(parse("io_priority", value)?));
    Ok(())
}

fn scheduler_of(scheduler: &LinuxScheduler) -> Result<oci_spec::runtime::Scheduler, String> {
    if scheduler.policy() == LinuxSchedulerPolicy::SchedNone {
        return Err("invalid scheduler: the policy is missing".to_owned());
    }
    let flags: Vec<&str> = scheduler.flags().map(flag_name).collect();
    let value = serde_json::json!({
        "policy": scheduler.policy().as_str_name(),
        "nice": scheduler.nice,
        "priority": scheduler.priority,
        "flags": flags,
        "runtime": scheduler.runtime,
        "deadline": scheduler.deadline,
        "period": scheduler.period,
    });
    parse("scheduler", value)
}

/// Returns the name of a flag in the types of the spec.
fn flag_name(flag: LinuxSchedulerFlag) -> &'static str {
    match flag {
        LinuxSchedulerFlag::SchedFlagResetOnFork => "SCHED_RESET_ON_FORK",
        LinuxSchedulerFlag::SchedFlagDlOverrun => "SCHED_FLAG_D_L_OVERRUN",
        other => other.as_str_name(),
    }
}

/// Mounts are sorted afterwards, so that a parent comes before the mounts inside it.
fn apply_mounts(spec: &mut Spec, changes: &[Mount]) -> Result<(), String> {
    if changes.is_empty() {
        return Ok(());
    }
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    for change in changes {
        let (destination, removes) = removal(&change.destination);
        if !destination.starts_with('/') {
            return Err(format!("invalid mount: destination {destination:?} is not absolute"));
        }
        let destination = normal(destination);
        mounts.retain(|mount| normal(&mount.destination().to_string_lossy()) != destination);
        if !removes {
            mounts.push(mount_of(change, &destination));
            raise_propagation(spec, &change.options);
        }
    }
    mounts.sort_by_key(|mount| mount.destination().components().count());
    spec.set_mounts(Some(mounts));
    Ok(())
}

fn mount_of(change: &Mount, destination: &str) -> OciMount {
    let mut mount = OciMount::default();
    mount
        .set_destination(destination.into())
        .set_source(Some(change.source.clone().into()).filter(|_| !change.source.is_empty()))
        .set_typ(Some(change.r#type.clone()).filter(|kind| !kind.is_empty()))
        .set_options(Some(change.options.clone()));
    mount
}

/// A volume whose mounts propagate needs a root that propagates.
fn raise_propagation(spec: &mut Spec, options: &[String]) {
    let Some(linux) = spec.linux_mut() else { return };
    let has = |name: &str| options.iter().any(|option| option == name);
    let current = linux.rootfs_propagation().clone().unwrap_or_default();
    if has("rshared") {
        linux.set_rootfs_propagation(Some("rshared".to_owned()));
    } else if has("rslave") && current != "rshared" {
        linux.set_rootfs_propagation(Some("rslave".to_owned()));
    }
}

#[cfg(test)]
mod tests;
