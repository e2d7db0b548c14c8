//! The objects on the host that a daemon with a given configuration has created for pods and containers, found by their
//! marks and not by records. `berth fsck` compares them with the records; `berth demo` and the tests require that nothing
//! is left. Objects of other programs and of daemons with other folders are never listed, and listing changes nothing.
//!
//! * [`cgroups`]: cgroups with the daemon's mark
//! * [`processes`]: keepers, and the children of a process
//! * [`network`]: links, nftables elements, addresses, leases, attachments and pinned network namespaces
//! * [`files`]: folders of pods and containers, sockets and temporary files
//! * [`mounts`]: mounts in the daemon's folders
//! * this file: the configuration's scope, and the type of an object

pub mod cgroups;
pub mod files;
pub mod mounts;
pub mod network;
pub mod processes;

use std::fmt;
use std::io;
use std::path::PathBuf;

use berth_image::{Unowned, UnownedKind};
use berth_runtime::cgroup::{CgroupPath, Hierarchies, Mark};

use crate::config::Config;
use crate::store::Folders;
use crate::store::file::FileError;

/// The reason why objects cannot be listed.
#[derive(Debug, thiserror::Error)]
pub enum InventoryError {
    /// The host cannot be read.
    #[error("failed to {action}: {source}")]
    Host {
        /// The action, such as "list processes".
        action: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// A folder of the daemon cannot be read.
    #[error(transparent)]
    Folder(#[from] FileError),
    /// The network cannot be read.
    #[error(transparent)]
    Network(#[from] berth_cni::Error),
}

impl InventoryError {
    fn host(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Host { action, source }
    }
}

/// The kind of an object, in the order in which objects are removed: what runs comes first, records come last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectKind {
    /// The keeper of a pod, with all processes of the pod.
    Keeper,
    /// A cgroup.
    Cgroup,
    /// A mount.
    Mount,
    /// The record of an attachment.
    Attachment,
    /// A network link.
    Link,
    /// Elements of nftables sets.
    Rules,
    /// An allocated address.
    Address,
    /// The record of a DHCP lease.
    Lease,
    /// A pinned network namespace.
    Pin,
    /// A writable layer.
    WritableLayer,
    /// A layer of images.
    Layer,
    /// The folder of an image.
    Image,
    /// A folder in which the image store created something.
    Staging,
    /// A removed folder of the image store.
    Trash,
    /// A file that was being written.
    TemporaryFile,
    /// A socket.
    Socket,
    /// A log folder that berth has created.
    LogFolder,
    /// The state of a container of an OCI runtime.
    RuntimeState,
    /// The volatile folder of a pod: the keeper's socket and log.
    StateFolder,
    /// The persistent folder of a container.
    ContainerFolder,
    /// The persistent folder of a pod.
    PodFolder,
    /// The record of a pod.
    PodRecord,
    /// The record of a container.
    ContainerRecord,
    /// The record of an image.
    ImageRecord,
}

impl ObjectKind {
    /// Returns the name for output.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Keeper => "keeper",
            Self::Cgroup => "cgroup",
            Self::Mount => "mount",
            Self::Link => "link",
            Self::Rules => "nft-elements",
            Self::Address => "address",
            Self::Lease => "dhcp-lease",
            Self::Pin => "netns-pin",
            Self::Attachment => "attachment",
            Self::WritableLayer => "writable-layer",
            Self::Layer => "layer",
            Self::Image => "image-folder",
            Self::Staging => "staging-folder",
            Self::Trash => "trash",
            Self::TemporaryFile => "temporary-file",
            Self::Socket => "socket",
            Self::LogFolder => "log-folder",
            Self::RuntimeState => "runtime-state",
            Self::StateFolder => "state-folder",
            Self::ContainerFolder => "container-folder",
            Self::PodFolder => "pod-folder",
            Self::PodRecord => "pod-record",
            Self::ContainerRecord => "container-record",
            Self::ImageRecord => "image-record",
        }
    }
}

impl fmt::Display for ObjectKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl From<UnownedKind> for ObjectKind {
    fn from(kind: UnownedKind) -> Self {
        match kind {
            UnownedKind::Layer => Self::Layer,
            UnownedKind::Image => Self::Image,
            UnownedKind::Staging => Self::Staging,
            UnownedKind::Trash => Self::Trash,
        }
    }
}

/// The pod or container that an object belongs to, by its id.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Owner {
    /// A pod.
    Pod(String),
    /// A container.
    Container(String),
    /// A pod or a container: the object shows only the id.
    Either(String),
    /// The daemon itself.
    Daemon,
}

impl Owner {
    /// Returns the id. Empty for the daemon.
    #[must_use]
    pub fn id(&self) -> &str {
        match self {
            Self::Pod(id) | Self::Container(id) | Self::Either(id) => id,
            Self::Daemon => "",
        }
    }
}

/// Where an object is, for its removal.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// A process.
    Process(i32),
    /// A cgroup.
    Cgroup(CgroupPath),
    /// An object of the network.
    Network(berth_cni::inventory::Object),
    /// A file, folder or mount point.
    Path(PathBuf),
    /// A folder of the image store.
    Store(Unowned),
    /// A record in the daemon's store, by the owner's id.
    Record,
}

/// An object on the host.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Object {
    /// Its kind.
    pub kind: ObjectKind,
    /// Its owner.
    pub owner: Owner,
    /// Its name for output: a path, a link's name, an address.
    pub name: String,
    /// Where it is.
    pub place: Place,
    /// Whether its mark distinguishes this daemon from others on the host. Marks of older versions do not identify the daemon.
    pub certain: bool,
}

impl Object {
    /// Creates an object that is a file, a folder or a mount point.
    #[must_use]
    pub fn at(kind: ObjectKind, owner: Owner, path: PathBuf) -> Self {
        Self { kind, owner, name: path.display().to_string(), place: Place::Path(path), certain: true }
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.name)
    }
}

/// The objects that a daemon with this configuration can have created.
#[derive(Clone, Debug)]
pub struct Scope {
    /// The configuration.
    pub config: Config,
    /// The folders of pods and containers.
    pub folders: Folders,
    /// The options of the network.
    pub network: berth_cni::Options,
    /// The cgroup hierarchies of this host. `None` if it has none.
    pub hierarchies: Option<Hierarchies>,
    /// The mark of the daemon's cgroups. `None` if its root folder does not exist.
    pub mark: Option<Mark>,
}

impl Scope {
    /// Returns the scope of a configuration.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        Self {
            folders: Folders::new(&config.root, &config.state),
            network: crate::network::options(config),
            hierarchies: Hierarchies::detect().ok(),
            mark: Mark::of_root(&config.root).ok(),
            config: config.clone(),
        }
    }
}

/// Lists all objects of pods and containers. Links and nftables elements are those of the calling thread's network
/// namespace. Needs a tokio runtime.
///
/// # Errors
/// A part of the host cannot be read; objects would be missing.
pub async fn objects(scope: &Scope) -> Result<Vec<Object>, InventoryError> {
    let mut objects = network::objects(scope).await?;
    let blocking_scope = scope.clone();
    let others = tokio::task::spawn_blocking(move || {
        let scope = blocking_scope;
        let mut objects = processes::keepers(&scope)?;
        objects.extend(cgroups::objects(&scope));
        objects.extend(files::folders(&scope)?);
        objects.extend(mounts::objects(&scope)?);
        Ok::<_, InventoryError>(objects)
    });
    objects.extend(others.await.map_err(|panic| InventoryError::Host {
        action: "list objects",
        source: io::Error::other(panic),
    })??);
    Ok(objects)
}
