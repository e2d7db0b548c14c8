//! Checkpoints of running containers and pods, made with CRIU (criu.org): the state of the processes, the changes of the root
//! filesystem, and the metadata, in one archive for each container that containerd, CRI-O and checkpointctl read.
//!
//! * [`criu`]: finds the program CRIU and its version
//! * [`mounts`]: the mounts that belong to the pod or the host, which a checkpoint only names
//! * [`arguments`]: the command line of a dump
//! * [`folder`]: a folder with a checkpoint; [`work`]: the one in which a checkpoint is assembled
//! * [`helper`]: runs a helper process; [`mod@dump`]: the one that freezes containers and dumps them, each by
//!   [`container_dump`]
//! * [`metadata`]: the descriptions of the container in the archive
//! * [`archive`]: the archive itself
//! * [`received`]: a checkpoint that is restored, which is untrusted
//! * [`mod@restore`]: the helper process that restores a container, with its order in [`restore_order`], its command
//!   line in [`restore_arguments`] and its mounts in [`restore_points`]
//! * [`restore_check`]: the check of the restored processes before they run
//! * [`images`]: what CRIU's images contain; [`inventory`]: the namespaces that the new pod replaces
//! * [`confinement`], [`mount_check`]: what restored processes may have
//! * [`pod_folder`]: the folder with the checkpoint of a pod; [`pod_manifest`]: its description
//! * [`shared_state`]: what the containers of a pod share; [`shared_dump`], [`shared_restore`]: the helpers that read it and
//!   create it again
//! * [`dump`]: the helper process of a checkpoint
//! * [`restore`]: the helper process of a restore

pub mod archive;
pub mod arguments;
pub mod confinement;
pub mod container_dump;
pub mod criu;
pub mod dump;
pub mod folder;
pub mod helper;
pub mod images;
pub mod inventory;
pub mod metadata;
pub mod mount_check;
pub mod mounts;
pub mod pod_folder;
pub mod pod_manifest;
pub mod received;
pub mod restore;
pub mod restore_arguments;
pub mod restore_check;
pub mod restore_order;
mod restore_points;
pub mod shared_dump;
pub mod shared_restore;
pub mod shared_state;
pub mod work;
