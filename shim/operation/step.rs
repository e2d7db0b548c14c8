//! The steps of all operations, in one table. Status, logs and metrics show their names, and tests stop a daemon at each of
//! them (`tests/it/failpoints`): a step that is not in the table cannot be started.

/// A step of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The RPC that starts the operation.
    pub operation: &'static str,
    /// The id of the step, unique in the operation.
    pub id: &'static str,
    /// The name, as operators see it. Two steps may have the same name.
    pub name: &'static str,
}

/// The step before the first one that an operation names.
pub(super) const WAITING: &str = "waiting";

macro_rules! operations {
    ($($(#[$doc:meta])* $rpc:ident: $steps:ident { $($(#[$step_doc:meta])* $step:ident = $name:literal,)* })*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Copy, Debug, PartialEq, Eq)]
            pub enum $steps {
                $($(#[$step_doc])* $step,)*
            }

            impl From<$steps> for Step {
                fn from(step: $steps) -> Self {
                    match step {
                        $($steps::$step => Self { operation: stringify!($rpc), id: stringify!($step), name: $name },)*
                    }
                }
            }
        )*

        impl Step {
            /// The steps of all operations. Each operation begins with a wait, and ends with its answer.
            pub const ALL: &[Self] = &[
                $(
                    Self::waiting(stringify!($rpc)),
                    $(Self { operation: stringify!($rpc), id: stringify!($step), name: $name },)*
                    Self::answer(stringify!($rpc)),
                )*
            ];
        }
    };
}

impl Step {
    /// The step before the first one that an operation names.
    pub(super) const fn waiting(operation: &'static str) -> Self {
        Self { operation, id: "Waiting", name: WAITING }
    }

    /// The operation is done, and the call is not answered.
    pub(super) const fn answer(operation: &'static str) -> Self {
        Self { operation, id: "Answer", name: "answer" }
    }

    /// Lets a test stop the daemon at the start of the step.
    pub(super) fn reach(self) {
        berth_failpoint::reach(self.operation, self.id);
    }
}

operations! {
    /// The steps of RunPodSandbox.
    RunPodSandbox: RunPodStep {
        /// The record is written.
        Intent = "intent",
        /// The cgroup is created.
        Cgroup = "cgroup",
        /// The keeper is started.
        Keeper = "keeper",
        /// The pause is started.
        Pause = "pause",
        /// The network is attached.
        Network = "network",
        /// The pod becomes ready on disk.
        Record = "record",
        /// NRI plugins are notified.
        Plugins = "NRI plugins",
        /// A step has failed, and all are undone.
        Undo = "undo",
    }
    /// The steps of StopPodSandbox.
    StopPodSandbox: StopPodStep {
        /// The creation of containers is cancelled.
        Creations = "creations in progress",
        /// The containers are killed.
        Containers = "containers",
        /// NRI plugins are notified.
        Plugins = "NRI plugins",
        /// The network, the keeper and the cgroup are released.
        Release = "release",
    }
    /// The steps of RemovePodSandbox.
    RemovePodSandbox: RemovePodStep {
        /// The pod is stopped.
        Stop = "stop",
        /// The containers are removed.
        Containers = "containers",
        /// The record is removed.
        Folders = "folders",
        /// NRI plugins are notified.
        Plugins = "NRI plugins",
    }
    /// The steps of CreateContainer.
    CreateContainer: CreateStep {
        /// The image is resolved.
        Image = "image",
        /// A checkpoint is received in the place of the image.
        Checkpoint = "checkpoint",
        /// The signature policy is checked, and the record is written.
        Policy = "signature policy",
        /// The writable layer is created.
        Layer = "writable layer",
        /// The OCI runtime spec is assembled.
        Spec = "root filesystem and spec",
        /// NRI plugins change the spec.
        Plugins = "NRI plugins",
        /// The scope of the systemd driver is started.
        Scope = "scope",
        /// The cgroup is created, and the spec is compiled.
        Plan = "cgroup and plan",
        /// The log file is created.
        Log = "log file",
        /// The keeper clones the first process.
        Process = "first process",
        /// The container becomes created on disk.
        Record = "record",
        /// NRI plugins are notified of the container, which clients see.
        Created = "NRI plugins",
        /// A step has failed, and all are undone.
        Undo = "undo",
    }
    /// The steps of StartContainer.
    StartContainer: StartStep {
        /// NRI plugins are asked.
        Plugins = "NRI plugins",
        /// The keeper lets the first process exec.
        Exec = "exec",
        /// NRI plugins are notified.
        Started = "NRI plugins",
    }
    /// The steps of StopContainer.
    StopContainer: StopStep {
        /// The stop signal is sent.
        Grace = "grace period",
        /// The processes are killed.
        Kill = "kill",
        /// NRI plugins are notified.
        Plugins = "NRI plugins",
    }
    /// The steps of RemoveContainer.
    RemoveContainer: RemoveStep {
        /// The processes are killed, and the keeper forgets the container.
        End = "end",
        /// NRI plugins are notified of the end.
        Plugins = "NRI plugins",
        /// Other operations on the container end.
        Turn = "turn",
        /// The OCI runtime deletes the container.
        Runtime = "OCI runtime",
        /// The cgroup is removed.
        Cgroup = "cgroup",
        /// The writable layer is removed.
        Layer = "writable layer",
        /// The record is removed.
        Folder = "folder",
        /// NRI plugins are notified of the removal.
        Removed = "NRI plugins",
    }
    /// The steps of CheckpointContainer.
    CheckpointContainer: CheckpointStep {
        /// CRIU dumps the container.
        Dump = "dump",
        /// The archive is written.
        Archive = "archive",
    }
    /// The steps of CheckpointPod.
    CheckpointPod: CheckpointPodStep {
        /// CRIU dumps the containers.
        Dump = "dump",
        /// The archives are written.
        Archive = "archive",
    }
    /// The steps of RestorePod.
    RestorePod: RestorePodStep {
        /// The pod is created.
        Pod = "pod",
        /// The pod gets what its containers shared.
        Shared = "shared state",
        /// The containers are created.
        Containers = "containers",
        /// The pod becomes complete on disk.
        Record = "record",
        /// A step has failed, and the pod is removed.
        Undo = "undo",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn ids_are_unique_and_can_be_names_of_files() {
        let mut seen = BTreeSet::new();
        for step in Step::ALL {
            assert!(seen.insert((step.operation, step.id)), "{step:?} is there twice");
            assert!(step.id.chars().all(|letter| letter.is_ascii_alphabetic()), "{step:?}");
        }
    }

    #[test]
    fn the_operators_page_explains_every_step() {
        let page = include_str!("../../docs/operations.md");
        let rows: String = page.lines().filter(|line| line.starts_with("| `")).collect();
        for step in Step::ALL {
            assert!(rows.contains(&format!("`{}`", step.name)), "{step:?} is not in docs/operations.md");
        }
    }

    #[test]
    fn operators_see_the_names() {
        let names = |operation| -> Vec<_> {
            let steps = Step::ALL.iter().filter(|step| step.operation == operation);
            steps.map(|step| step.name).collect()
        };
        let expected = ["waiting", "NRI plugins", "exec", "NRI plugins", "answer"];
        assert_eq!(names("StartContainer"), expected);
        assert_eq!(Step::from(RunPodStep::Network).name, "network");
    }
}
