//! Checkpoints of running containers, made with CRIU (criu.org): the state of the processes, the changes of the root
//! filesystem, and the metadata, in one archive that containerd, CRI-O and checkpointctl read.
//!
//! * [`criu`]: finds the program CRIU and its version
//! * [`mounts`]: the mounts that belong to the pod or the host, which a checkpoint only names
//! * [`arguments`]: the command line of a dump
//! * [`folder`]: a folder with a checkpoint; [`work`]: the one in which a checkpoint is assembled
//! * [`dump`]: the helper process that freezes a container and dumps it
//! * [`metadata`]: the descriptions of the container in the archive
//! * [`archive`]: the archive itself
//! * [`received`]: a checkpoint that is restored, which is untrusted
//! * [`mod@restore`]: the helper process that restores a container, with its command line in [`restore_arguments`]
//! * [`images`]: what CRIU's images contain; [`inventory`]: the namespaces that the new pod replaces
//! * [`confinement`], [`mount_check`]: what restored processes may have

pub mod archive;
pub mod arguments;
pub mod confinement;
pub mod criu;
pub mod dump;
pub mod folder;
pub mod images;
pub mod inventory;
pub mod metadata;
pub mod mount_check;
pub mod mounts;
pub mod received;
pub mod restore;
pub mod restore_arguments;
pub mod work;
