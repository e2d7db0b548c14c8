//! Checkpoints of running containers, made with CRIU (criu.org): the state of the processes, the changes of the root
//! filesystem, and the metadata, in one archive that containerd, CRI-O and checkpointctl read.
//!
//! * [`criu`]: finds the program CRIU and its version
//! * [`mounts`]: the mounts that belong to the pod or the host, which a checkpoint only names
//! * [`arguments`]: the command line of a dump
//! * [`work`]: the folder in which a checkpoint is assembled
//! * [`dump`]: the helper process that freezes a container and dumps it
//! * [`metadata`]: the descriptions of the container in the archive
//! * [`archive`]: the archive itself

pub mod archive;
pub mod arguments;
pub mod criu;
pub mod dump;
pub mod metadata;
pub mod mounts;
pub mod work;
