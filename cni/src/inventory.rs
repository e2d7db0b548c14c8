//! The objects on the host that belong to pods of a network, found by their marks and not by records: links by their
//! aliases, rules by their comments, addresses and leases by their files, attachments by their records, pins by the content
//! of their files. Listing changes nothing.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::addresses::{self, Store};
use crate::config::Configuration;
use crate::conflist::Conflist;
use crate::dhcp;
use crate::files::blocking;
use crate::names;
use crate::netlink::Netlink;
use crate::network::Network;
use crate::nftables::{self, Comment};
use crate::pin::{self, Pin};
use crate::record::Records;
use crate::{Context, Options, Result};

/// An object of a pod on the host.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Object {
    /// A link.
    Link {
        /// The name of the link.
        name: String,
        /// Its alias, which names network and pod.
        alias: String,
    },
    /// Elements of nftables sets.
    Rules {
        /// The network of the attachment.
        network: String,
        /// The pod.
        pod: String,
        /// The interface in the pod.
        interface: String,
    },
    /// An allocated address.
    Address {
        /// The folder of the network's addresses.
        folder: PathBuf,
        /// The name of the address's file.
        address: String,
        /// The pod. Empty if the file does not name one.
        pod: String,
    },
    /// The record of a DHCP lease.
    Lease {
        /// The network.
        network: String,
        /// The pod.
        pod: String,
        /// The interface in the pod.
        interface: String,
        /// The leased address.
        address: String,
    },
    /// The record of an attachment.
    Attachment {
        /// The pod.
        pod: String,
        /// The record's file.
        file: PathBuf,
    },
    /// A pinned network namespace.
    Pin {
        /// The pod.
        pod: String,
        /// The path.
        path: PathBuf,
        /// Whether this node's network has pinned it. Pins of older daemons do not show that.
        certain: bool,
    },
}

impl Object {
    /// Returns the id of the pod.
    #[must_use]
    pub fn pod(&self) -> &str {
        match self {
            Self::Link { alias, .. } => names::pod_of_alias(alias).unwrap_or_default(),
            Self::Rules { pod, .. }
            | Self::Address { pod, .. }
            | Self::Lease { pod, .. }
            | Self::Attachment { pod, .. }
            | Self::Pin { pod, .. } => pod,
        }
    }
}

/// The names of the networks of a node, and the folders of their addresses.
#[derive(Debug, Default)]
struct Networks {
    names: BTreeSet<String>,
    address_folders: BTreeSet<PathBuf>,
}

impl Networks {
    fn add(&mut self, config: &Conflist, data_dir: &Path) {
        self.names.insert(config.name.clone());
        let ipam = config.plugins.iter().filter_map(|entry| entry.plugin.ipam());
        self.address_folders.extend(ipam.filter_map(|ipam| ipam.address_folder(data_dir, &config.name)));
    }
}

/// Lists the objects of a node's networks: the active one, the built-in one, and those of recorded attachments. Links
/// and rules are those of the calling thread's network namespace. Needs a tokio runtime.
///
/// # Errors
/// Something cannot be listed; objects may be missing.
pub async fn objects(options: &Options) -> Result<Vec<Object>> {
    let networks = networks_of(options).await?;
    let mut objects = links(&networks).await?;
    objects.extend(rules(&networks).await?);
    let options = options.clone();
    let files = blocking(move || {
        let mut objects = Vec::new();
        for folder in networks.address_folders {
            let owned = addresses::listed(&folder)?;
            objects.extend(owned.into_iter().map(|(address, owner)| Object::Address {
                folder: folder.clone(),
                address,
                pod: owner.container,
            }));
        }
        let lease = |(owner, address): (dhcp::LeaseOwner, String)| Object::Lease {
            network: owner.network,
            pod: owner.container,
            interface: owner.interface,
            address,
        };
        objects.extend(dhcp::recorded(&dhcp::folder(&options.state_dir)).into_iter().map(lease));
        let records = Records::existing(&options.state_dir);
        let attachment = |pod: String| Object::Attachment { file: records.file(&pod), pod };
        objects.extend(records.names_if_any()?.into_iter().map(attachment));
        objects.extend(pins(&options)?);
        Ok(objects)
    });
    objects.extend(files.await?);
    Ok(objects)
}

/// Lists the pinned network namespaces. Blocks.
///
/// # Errors
/// Their folder cannot be read.
pub fn pins(options: &Options) -> Result<Vec<Object>> {
    let pins = pin::pins(&options.state_dir).doing("list pinned network namespaces")?;
    Ok(pins.into_iter().map(|Pin { pod, path, certain }| Object::Pin { pod, path, certain }).collect())
}

async fn networks_of(options: &Options) -> Result<Networks> {
    let options = options.clone();
    blocking(move || {
        let configuration = Configuration::new(&options);
        let mut networks = Networks::default();
        // An invalid configuration attaches no pods.
        if let Ok(config) = configuration.current() {
            networks.add(&config, &options.data_dir);
        }
        if let Ok(config) = Conflist::builtin(&options.builtin) {
            networks.add(&config, &options.data_dir);
        }
        let records = Records::existing(&options.state_dir);
        for pod in records.names_if_any()? {
            let Some(record) = Records::read_file(&records.file(&pod))? else { continue };
            if let Ok(config) = configuration.recorded(&record.made_by()) {
                networks.add(&config, record.data_dir.as_deref().unwrap_or(&options.data_dir));
            }
        }
        Ok(networks)
    })
    .await
}

async fn links(networks: &Networks) -> Result<Vec<Object>> {
    let links = Netlink::open()?.links().await?;
    let of_network =
        |alias: &str| networks.names.iter().any(|name| alias.starts_with(&names::alias(name, "")));
    let owned = links.into_iter().filter_map(|link| {
        let alias = link.alias.filter(|alias| of_network(alias))?;
        Some(Object::Link { name: link.name, alias })
    });
    Ok(owned.collect())
}

async fn rules(networks: &Networks) -> Result<Vec<Object>> {
    let owners =
        nftables::owners().await?.into_iter().filter(|owner| networks.names.contains(&owner.network));
    let rules = |Comment { network, container: pod, interface }| Object::Rules { network, pod, interface };
    let mut rules: Vec<_> = owners.map(rules).collect();
    rules.sort_by(|left, right| left.pod().cmp(right.pod()));
    Ok(rules)
}

impl Network {
    /// Removes an object whose pod does not exist. It may be gone already.
    ///
    /// # Errors
    /// The object cannot be removed.
    pub async fn remove_object(&self, object: &Object) -> Result<()> {
        let host = &self.shared.host;
        match object {
            Object::Attachment { pod, .. } => self.del(pod, None).await,
            Object::Link { name, alias } => {
                // Another link may have the name by now.
                let link = host.links.link(name).await?;
                match link.is_some_and(|link| link.alias.as_ref() == Some(alias)) {
                    true => host.links.remove(name).await,
                    false => Ok(()),
                }
            }
            Object::Rules { network, pod, interface } => {
                let owner = Comment::new(network, pod, interface);
                nftables::release_where(move |comment| *comment == owner).await.map(drop)
            }
            Object::Address { folder, pod, .. } => {
                let (store, pod) = (Store::new(folder.clone(), &host.addresses), pod.clone());
                blocking(move || store.release_where(|owner| owner.container == pod)).await.map(drop)
            }
            Object::Lease { network, pod, interface, .. } => {
                let owner = dhcp::LeaseOwner {
                    container: pod.clone(),
                    network: network.clone(),
                    interface: interface.clone(),
                };
                match &host.dhcp {
                    Some(dhcp) => dhcp.release(&owner, None).await,
                    None => Ok(()),
                }
            }
            Object::Pin { path, .. } => pin::unpin(path),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn options(folder: &Path) -> Options {
        Options {
            conf_dir: folder.join("net.d"),
            template: None,
            bin_dirs: Vec::new(),
            external: Vec::new(),
            state_dir: folder.join("network"),
            data_dir: folder.join("addresses"),
            patience: std::time::Duration::from_secs(1),
            builtin: crate::Builtin {
                bridge: "inventory0".to_owned(),
                subnets: vec!["10.76.0.0/24".parse().unwrap()],
                mtu: None,
            },
            observer: None,
        }
    }

    #[tokio::test]
    async fn files_of_pods_are_listed_and_nothing_is_created() {
        let folder = tempfile::tempdir().unwrap();
        let options = options(folder.path());
        assert_eq!(objects(&options).await.unwrap(), []);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "listing creates nothing");
        let addresses = folder.path().join("addresses/inventory0");
        fs::create_dir_all(&addresses).unwrap();
        fs::write(addresses.join("10.76.0.2"), "pod1\r\neth0").unwrap();
        fs::write(addresses.join("last_reserved_ip.0"), "10.76.0.2").unwrap();
        fs::create_dir_all(folder.path().join("addresses/others")).unwrap();
        fs::write(folder.path().join("addresses/others/10.75.0.2"), "pod2\r\neth0").unwrap();
        fs::create_dir_all(folder.path().join("network/pods")).unwrap();
        fs::write(folder.path().join("network/pods/pod3.json"), "{").unwrap();
        let found = objects(&options).await.unwrap();
        let address =
            Object::Address { folder: addresses, address: "10.76.0.2".to_owned(), pod: "pod1".to_owned() };
        let attachment =
            Object::Attachment { pod: "pod3".to_owned(), file: folder.path().join("network/pods/pod3.json") };
        assert_eq!(found, [address, attachment]);
    }
}
