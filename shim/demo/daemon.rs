//! The demo's own daemon: this program, with all its files in the demo's folder and a bridge and addresses that
//! nothing else uses.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use berth_cni::Network;
use berth_runtime::cgroup::{CgroupPath, tree};
use ipnet::{IpNet, Ipv4Net};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tonic::transport::Channel;

use super::DemoError;
use super::print::Printer;
use crate::config::{CgroupDriver, Config, NetworkConfig, NriConfig};
use crate::inventory::network::interfaces;
use crate::server::connect::{answers, connect};

/// The time limit for the daemon to start, and to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// The interval of checks whether the daemon answers.
const LOOK: Duration = Duration::from_millis(2);

/// The daemon, running or ended.
#[derive(Debug)]
pub struct PrivateDaemon {
    child: Child,
    started: Instant,
    config: Config,
    log: PathBuf,
    logs: PathBuf,
    cgroup_parent: String,
    ip_forward: Option<IpForward>,
}

impl PrivateDaemon {
    /// Starts the daemon. `folder` is the demo's own empty folder.
    ///
    /// # Errors
    /// The files cannot be written, no addresses are free, or the daemon cannot be started.
    pub fn spawn(folder: &Path) -> Result<Self, DemoError> {
        let config = config(folder)?;
        let ip_forward = IpForward::if_off();
        let file = folder.join("config.toml");
        let text =
            config.to_toml().map_err(|error| DemoError::Daemon(format!("cannot be configured: {error}")))?;
        fs::write(&file, text).map_err(DemoError::file("write", &file))?;
        let log = folder.join("daemon.log");
        let output = fs::File::create(&log).map_err(DemoError::file("create", &log))?;
        let errors = output.try_clone().map_err(DemoError::file("open", &log))?;
        let child = Command::new("/proc/self/exe")
            .arg0("berth")
            .args(["serve", "--config"])
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            // Ctrl-C must not end the daemon: the demo needs it for the cleanup.
            .process_group(0)
            .spawn()
            .map_err(|error| DemoError::Daemon(format!("does not start: {error}")))?;
        let cgroup_parent = format!("/berth-demo-{}", std::process::id());
        Ok(Self {
            child,
            started: Instant::now(),
            config,
            log,
            logs: folder.join("logs"),
            cgroup_parent,
            ip_forward,
        })
    }

    /// Waits until the daemon answers on its socket.
    ///
    /// # Errors
    /// The daemon ended, or takes too long.
    pub async fn wait_until_ready(&mut self, printer: &Printer) -> Result<(), DemoError> {
        while let Err(error) = answers(&self.config.socket).await {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(DemoError::Daemon(format!("ended during its start: {status}")));
            }
            if self.started.elapsed() > PATIENCE {
                return Err(DemoError::Daemon(format!("does not answer: {error}")));
            }
            tokio::time::sleep(LOOK).await;
        }
        let detail = self.child.id().map(|pid| format!("process {pid}")).unwrap_or_default();
        printer.step("berth serve", &detail, self.started.elapsed())?;
        Ok(())
    }

    /// Connects to the daemon.
    ///
    /// # Errors
    /// The daemon does not answer.
    pub async fn connect(&self) -> Result<Channel, DemoError> {
        connect(&self.config.socket)
            .await
            .map_err(|error| DemoError::Daemon(format!("does not answer: {error}")))
    }

    /// Ends the daemon as a service manager does, and removes its network, which a daemon leaves for its successor.
    ///
    /// # Errors
    /// The daemon does not end, or the network cannot be removed.
    pub async fn end(&mut self, printer: &Printer) -> Result<(), DemoError> {
        let start = Instant::now();
        let terminated = self.terminate().await;
        let network_removed = self.remove_network().await;
        let cgroup_removed = self.remove_cgroup();
        terminated?;
        network_removed?;
        cgroup_removed?;
        printer.step("end", "the daemon and its bridge", start.elapsed())?;
        Ok(())
    }

    async fn terminate(&mut self) -> Result<(), DemoError> {
        let Some(pid) = self.child.id().and_then(|pid| i32::try_from(pid).ok()) else {
            return Ok(());
        };
        // The child has not been waited for, so the pid cannot belong to another process.
        kill(Pid::from_raw(pid), Signal::SIGTERM)
            .map_err(|error| DemoError::Daemon(format!("cannot be signalled: {error}")))?;
        match tokio::time::timeout(PATIENCE, self.child.wait()).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) => Err(DemoError::Daemon(format!("ended with {status}"))),
            Ok(Err(error)) => Err(DemoError::Daemon(format!("cannot be waited for: {error}"))),
            Err(_) => {
                let killed = self.child.kill().await;
                let how = killed
                    .map_or_else(|error| format!("cannot be killed: {error}"), |()| "was killed".to_owned());
                Err(DemoError::Daemon(format!("did not end in {} s and {how}", PATIENCE.as_secs())))
            }
        }
    }

    async fn remove_network(&self) -> Result<(), DemoError> {
        let failed =
            |error: berth_cni::Error| DemoError::Host(format!("failed to remove the network: {error}"));
        let network = Network::open(crate::network::options(&self.config)).map_err(failed)?;
        network.teardown().await.map_err(failed)?;
        self.ip_forward.as_ref().map_or(Ok(()), IpForward::turn_off)
    }

    /// Removes the parent cgroup. The client that names a parent, the kubelet or the demo, owns it. Only the empty
    /// folder is removed: anything in it was left by berth and must be reported.
    fn remove_cgroup(&self) -> Result<(), DemoError> {
        let failed = |error: String| {
            DemoError::Host(format!("failed to remove cgroup {}: {error}", self.cgroup_parent))
        };
        let parent =
            CgroupPath::from_recorded(&self.cgroup_parent).map_err(|error| failed(error.to_string()))?;
        let folders = tree::folders(&parent).map_err(|error| failed(error.to_string()))?;
        for folder in
            folders.iter().filter(|folder| folder.ends_with(self.cgroup_parent.trim_start_matches('/')))
        {
            fs::remove_dir(folder).map_err(DemoError::file("remove cgroup", folder))?;
        }
        Ok(())
    }

    /// Returns the daemon's log.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Returns the folder of its pods' logs.
    #[must_use]
    pub fn logs(&self) -> &Path {
        &self.logs
    }

    /// Returns the parent of its pods' cgroups.
    #[must_use]
    pub fn cgroup_parent(&self) -> &str {
        &self.cgroup_parent
    }

    /// Returns its configuration.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }
}

/// The sysctl `ip_forward`, if it was off before the demo: a bridge that is a gateway turns it on.
#[derive(Debug)]
struct IpForward {
    switch: PathBuf,
}

impl IpForward {
    fn if_off() -> Option<Self> {
        let switch = PathBuf::from("/proc/sys/net/ipv4/ip_forward");
        let is_off = fs::read_to_string(&switch).is_ok_and(|value| value.trim() == "0");
        is_off.then_some(Self { switch })
    }

    fn turn_off(&self) -> Result<(), DemoError> {
        fs::write(&self.switch, "0").map_err(DemoError::file("write", &self.switch))
    }
}

fn config(folder: &Path) -> Result<Config, DemoError> {
    Ok(Config {
        socket: folder.join("berth.sock"),
        root: folder.join("root"),
        state: folder.join("state"),
        // The folder does not exist, so the pod gets the built-in network and not this machine's.
        cni_conf_dir: folder.join("net.d"),
        cni_data_dir: folder.join("addresses"),
        // Likewise, this machine's registries, credentials and policy are not used.
        certs_dir: vec![folder.join("certs.d")],
        registries_conf: folder.join("registries.conf"),
        auth_file: Vec::new(),
        signature_policy: folder.join("policy.json"),
        stream_address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        cgroup_driver: CgroupDriver::Cgroupfs,
        // Nor this machine's plugins.
        nri: NriConfig { enable: false, ..NriConfig::default() },
        network: NetworkConfig {
            bridge: free_bridge()?,
            subnets: vec![IpNet::V4(free_subnet()?)],
            mtu: None,
        },
        ..Config::default()
    })
}

/// Returns a bridge name that no interface has.
fn free_bridge() -> Result<String, DemoError> {
    let used = interfaces().map_err(DemoError::file("read", Path::new("/proc/self/net/dev")))?;
    let names = (0..100).map(|number| format!("berthdemo{number}"));
    names.into_iter().find(|name| !used.contains(name)).ok_or_else(|| {
        DemoError::Host("interfaces already use the names berthdemo0 to berthdemo99".to_owned())
    })
}

/// Returns a /24 of 10.99.0.0/16 without routes on this machine.
fn free_subnet() -> Result<Ipv4Net, DemoError> {
    let path = Path::new("/proc/self/net/route");
    let routes = fs::read_to_string(path).map_err(DemoError::file("read", path))?;
    first_free(&routed(&routes))
        .ok_or_else(|| DemoError::Host("every /24 of 10.99.0.0/16 has a route".to_owned()))
}

fn first_free(routed: &[Ipv4Net]) -> Option<Ipv4Net> {
    let subnets = (0..=u8::MAX).filter_map(|third| Ipv4Net::new(Ipv4Addr::new(10, 99, third, 0), 24).ok());
    subnets.into_iter().find(|subnet| {
        // The default route covers all addresses.
        let mut others = routed.iter().filter(|route| route.prefix_len() > 0);
        !others.any(|route| route.contains(subnet) || subnet.contains(route))
    })
}

/// Parses the networks of `/proc/net/route`: hexadecimal words in the machine's byte order.
fn routed(table: &str) -> Vec<Ipv4Net> {
    let address =
        |word: &str| u32::from_str_radix(word, 16).ok().map(|number| Ipv4Addr::from(number.to_ne_bytes()));
    let network = |line: &str| {
        let words: Vec<_> = line.split_whitespace().collect();
        Ipv4Net::with_netmask(address(words.get(1)?)?, address(words.get(7)?)?).ok()
    };
    table.lines().skip(1).filter_map(network).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subnets_with_routes_are_not_taken() {
        let line = |destination: [u8; 4], mask: [u8; 4]| {
            let word = |bytes| format!("{:08X}", u32::from_ne_bytes(bytes));
            format!("eth0\t{}\t00000000\t0001\t0\t0\t0\t{}\t0\t0\t0\n", word(destination), word(mask))
        };
        let head = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n";
        let table =
            [head.to_owned(), line([0; 4], [0; 4]), line([10, 99, 0, 0], [255, 255, 255, 0])].concat();
        let routes = routed(&table);
        assert_eq!(routes.len(), 2);
        assert_eq!(first_free(&routes).unwrap().to_string(), "10.99.1.0/24");
        assert_eq!(first_free(&[]).unwrap().to_string(), "10.99.0.0/24");
        let host_route = routed(&[head.to_owned(), line([10, 99, 0, 7], [255; 4])].concat());
        assert_eq!(first_free(&host_route).unwrap().to_string(), "10.99.1.0/24", "a route into it is enough");
        let vpn = routed(&[head.to_owned(), line([10, 0, 0, 0], [255, 0, 0, 0])].concat());
        assert_eq!(first_free(&vpn), None);
        assert_eq!(routed("head\ngarbage\na b c d e f g h\n"), []);
    }
}
