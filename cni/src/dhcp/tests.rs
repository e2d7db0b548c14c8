//! Tests of the client with real servers in network namespaces: a lease is acquired, renewed, resumed after a restart,
//! lost when its server refuses or no server renews it, and released. Debian's dnsmasq supports all options and grants
//! leases of two minutes or more; busybox' udhcpd supports few options and grants leases of seconds.

use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use serde_json::json;

use super::*;

#[path = "../../../tests/it/support/net.rs"]
mod net;

use net::Namespace;

/// The time limit of a step on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server with a link to a pod.
struct Network {
    pod: Namespace,
    host: Namespace,
    server: Option<Child>,
    folder: tempfile::TempDir,
}

impl Network {
    fn new() -> Self {
        let (host, pod) = (Namespace::new(), Namespace::new());
        host.sh(&format!(
            "ip link add srv0 type veth peer name eth0 address 02:00:00:00:00:05 netns {}
             ip addr add 10.5.0.1/24 dev srv0; ip link set srv0 up",
            pod.pid()
        ));
        Self { pod, host, server: None, folder: tempfile::tempdir().unwrap() }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn serve(&mut self, program: &str, arguments: &[&str]) {
        let log = fs::File::options().create(true).append(true).open(self.file("log")).unwrap();
        let mut command = self.host.command(program);
        command.args(arguments).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.server = Some(command.spawn().unwrap());
    }

    fn dnsmasq(&mut self, more: &[&str]) {
        let leases = format!("--dhcp-leasefile={}", self.file("leases").display());
        let default = [
            "--keep-in-foreground",
            "--log-facility=-",
            "--log-dhcp",
            "--conf-file=/dev/null",
            "--port=0",
            "--interface=srv0",
            "--bind-interfaces",
            "--dhcp-authoritative",
            "--no-ping",
            "--user=root",
            "--pid-file=",
            "--dhcp-range=10.5.0.100,10.5.0.110,255.255.255.0,2m",
            &leases,
        ];
        self.serve("dnsmasq", &[&default[..], more].concat());
    }

    /// Serves one address, for leases of this many seconds.
    fn udhcpd(&mut self, seconds: u32) {
        let config = format!(
            "start 10.5.0.100\nend 10.5.0.110\ninterface srv0\nmin_lease 1\noption lease {seconds}\n\
             option subnet 255.255.255.0\nlease_file {0}\npidfile {1}\nstatic_lease 02:00:00:00:00:05 10.5.0.100\n",
            self.file("udhcpd.leases").display(),
            self.file("udhcpd.pid").display()
        );
        fs::write(self.file("udhcpd.conf"), config).unwrap();
        fs::write(self.file("udhcpd.leases"), "").unwrap();
        let config = self.file("udhcpd.conf").display().to_string();
        self.serve("busybox", &["udhcpd", "-f", &config]);
    }

    fn stop_server(&mut self) {
        if let Some(mut server) = self.server.take() {
            // `nsenter` has executed dnsmasq in its place.
            server.kill().unwrap();
            server.wait().unwrap();
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.file("log")).unwrap_or_default()
    }

    /// Waits until the server's log contains a text this many times.
    async fn wait_for_log(&self, text: &str, times: usize) {
        self.until(text, || self.log().matches(text).count() >= times).await;
    }

    async fn until(&self, what: &str, condition: impl Fn() -> bool) {
        let until = Instant::now() + PATIENCE;
        while !condition() {
            assert!(Instant::now() < until, "waited for {what:?}: {}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn netns(&self) -> OwnedFd {
        fs::File::open(self.pod.path()).unwrap().into()
    }

    fn dhcp(&self) -> Dhcp {
        Dhcp::new(&self.file("state")).unwrap()
    }

    async fn acquire(&self, dhcp: &Dhcp, ipam: &Value) -> Result<Lease> {
        use std::os::fd::AsFd as _;
        let arguments = BTreeMap::from([("K8S_POD_NAME".to_owned(), "web-0".to_owned())]);
        let lease = dhcp.acquire(&owner(), self.netns().as_fd(), ipam, &arguments).await?;
        self.pod.sh(&format!("ip addr add {} dev eth0", lease.address));
        Ok(lease)
    }

    fn is_up(&self) -> bool {
        self.pod.sh("ip -o link show eth0").contains(",UP")
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.stop_server();
    }
}

fn owner() -> LeaseOwner {
    LeaseOwner { container: "c".repeat(64), network: "lan".to_owned(), interface: "eth0".to_owned() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_contains_what_the_server_offers_the_pod() {
    let mut network = Network::new();
    network.dnsmasq(&[
        "--dhcp-option=option:router,10.5.0.1",
        "--dhcp-option=option:dns-server,192.0.2.53",
        "--dhcp-option=option:domain-name,x.example",
        "--dhcp-option=26,1400",
        "--dhcp-option=121,0.0.0.0/0,10.5.0.1,192.0.2.0/24,10.5.0.9",
        "--dhcp-vendorclass=set:berth,berth",
        "--dhcp-option=tag:berth,42,192.0.2.123",
    ]);
    let dhcp = network.dhcp();
    let ipam = json!({ "type": "dhcp", "priority": 7, "request": [{ "option": "42" }],
        "provide": [{ "option": "host-name", "fromArg": "K8S_POD_NAME" },
                    { "option": "vendor-class-identifier", "value": "berth" }] });
    let lease = network.acquire(&dhcp, &ipam).await.unwrap();
    assert!(
        lease.address.to_string().starts_with("10.5.0.1") && lease.address.prefix_len() == 24,
        "{lease:?}"
    );
    assert_eq!(lease.gateway, Some([10, 5, 0, 1].into()));
    assert_eq!(lease.server, std::net::Ipv4Addr::new(10, 5, 0, 1));
    assert_eq!(lease.name_servers, [std::net::Ipv4Addr::new(192, 0, 2, 53)]);
    assert_eq!((lease.domain.as_deref(), lease.mtu), (Some("x.example"), Some(1400)));
    let routes: Vec<_> = lease.routes.iter().map(|route| (route.to.to_string(), route.via)).collect();
    let via = |last: u8| Some([10, 5, 0, last].into());
    assert_eq!(routes, [("0.0.0.0/0".to_owned(), via(1)), ("192.0.2.0/24".to_owned(), via(9))]);
    assert!(lease.routes.iter().all(|route| route.priority == 7), "{lease:?}");
    // The server received the pod's names, the client's id and the requested options.
    let leases = fs::read_to_string(network.file("leases")).unwrap();
    let id: String = owner().client_id().iter().map(|byte| format!("{byte:02x}:")).collect();
    assert!(leases.contains("web-0") && leases.contains(id.trim_end_matches(':')), "{leases}");
    assert!(
        network.log().contains("vendor class: berth") && network.log().contains("tags: berth"),
        "{}",
        network.log()
    );
    assert_eq!(dhcp.check(&owner()).unwrap(), lease);
    // A second call returns the same lease without a message to the server.
    let discovers = network.log().matches("DHCPDISCOVER(").count();
    use std::os::fd::AsFd as _;
    let again = dhcp.acquire(&owner(), network.netns().as_fd(), &ipam, &BTreeMap::new()).await.unwrap();
    assert_eq!((again, network.log().matches("DHCPDISCOVER(").count()), (lease, discovers));

    dhcp.release(&owner(), Some(network.netns().as_fd())).await.unwrap();
    network.wait_for_log("DHCPRELEASE(", 1).await;
    network
        .until("no lease", || !fs::read_to_string(network.file("leases")).unwrap().contains("web-0"))
        .await;
    assert!(dhcp.check(&owner()).unwrap_err().to_string().contains("has no DHCP lease"));
    assert_eq!(fs::read_dir(network.file("state")).unwrap().count(), 0, "no record is left of a lease");
    dhcp.release(&owner(), None).await.unwrap();
}

/// udhcpd logs this for each ACK, without naming the request.
const GIVEN: &str = "sending ACK";

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_is_renewed_and_resumes_after_a_restart() {
    let mut network = Network::new();
    network.udhcpd(10);
    let dhcp = network.dhcp();
    network.acquire(&dhcp, &json!({})).await.unwrap();
    // The first ACK granted the lease; the second renewed it after half of its time.
    network.wait_for_log(GIVEN, 2).await;
    assert_eq!(network.log().matches("sending OFFER").count(), 1, "{}", network.log());
    drop(dhcp);
    let before = network.log().matches(GIVEN).count();
    let dhcp = network.dhcp();
    assert_eq!(dhcp.resume(|_| None), []);
    assert_eq!(dhcp.resume(|_| Some(network.netns())), [owner()]);
    network.wait_for_log(GIVEN, before + 1).await;
    assert_eq!(network.log().matches("sending OFFER").count(), 1, "{}", network.log());
    assert!(network.is_up() && dhcp.check(&owner()).is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_is_not_renewed_expires() {
    let mut network = Network::new();
    network.udhcpd(4);
    let dhcp = network.dhcp();
    network.acquire(&dhcp, &json!({})).await.unwrap();
    network.stop_server();
    assert!(network.is_up());
    network.until("the interface to go down", || !network.is_up()).await;
    network.until("the end", || dhcp.check(&owner()).is_err()).await;
    assert!(dhcp.check(&owner()).unwrap_err().to_string().contains("expired"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_expired_without_a_daemon_is_requested_once_more() {
    let mut network = Network::new();
    network.udhcpd(4);
    let dhcp = network.dhcp();
    network.acquire(&dhcp, &json!({})).await.unwrap();
    drop(dhcp);
    let dhcp = network.dhcp();
    network.until("the end", || dhcp.check(&owner()).is_err()).await;
    dhcp.resume(|_| Some(network.netns()));
    network.until("the lease again", || dhcp.check(&owner()).is_ok()).await;
    assert!(network.is_up());
}

#[tokio::test(flavor = "multi_thread")]
async fn another_server_may_renew_a_lease() {
    let mut network = Network::new();
    network.udhcpd(10);
    let dhcp = network.dhcp();
    network.acquire(&dhcp, &json!({})).await.unwrap();
    network.stop_server();
    network.host.sh("ip addr flush dev srv0; ip addr add 10.5.0.2/24 dev srv0");
    fs::write(network.file("log"), "").unwrap();
    network.udhcpd(60);
    // The old server receives the request at T1 and does not answer; all servers receive the one at T2.
    network.wait_for_log(GIVEN, 1).await;
    network
        .until("the new server", || {
            dhcp.records.read(&owner()).unwrap().unwrap().lease.server.octets()[3] == 2
        })
        .await;
    assert!(network.is_up() && dhcp.check(&owner()).is_ok());
    assert!(!network.log().contains("OFFER"), "{}", network.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_address_is_no_longer_used() {
    use std::os::fd::AsFd as _;
    let mut network = Network::new();
    network.udhcpd(10);
    let dhcp = network.dhcp();
    network.acquire(&dhcp, &json!({})).await.unwrap();
    network.stop_server();
    // A server that refuses takes its place.
    let host: OwnedFd = fs::File::open(network.host.path()).unwrap().into();
    let socket = netns::within(host.as_fd(), || {
        let socket = std::net::UdpSocket::bind("10.5.0.1:67").doing("serve")?;
        socket.set_nonblocking(true).doing("serve")?;
        tokio::net::UdpSocket::from_std(socket).doing("serve")
    });
    let socket = socket.await.unwrap();
    let mut buffer = [0; 1500];
    let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
    let request = message::DhcpMessage::parse(&buffer[..length]).unwrap();
    assert_eq!(request.kind(), Some(message::MessageType::Request));
    assert_eq!(
        (from.ip().to_string(), request.client.to_string()),
        ("10.5.0.100".to_owned(), "10.5.0.100".to_owned())
    );
    let mut nak =
        message::DhcpMessage::of_client(message::MessageType::Nak, request.transaction, request.hardware);
    nak.from = message::Sender::Server;
    nak.options.insert(message::option::ERROR, b"taken\nby another".to_vec());
    socket.send_to(&nak.to_bytes(), from).await.unwrap();
    network.until("the interface to go down", || !network.is_up()).await;
    let why = dhcp.check(&owner()).unwrap_err().to_string();
    assert!(why.contains("has lost its DHCP lease") && why.contains("refused: taken\\nby another"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_message_is_sent_again() {
    let mut network = Network::new();
    network.udhcpd(60);
    network.host.sh("ip link set srv0 down");
    let (dhcp, ipam) = (network.dhcp(), json!({}));
    let links = || network.pod.sh("ip -o link show eth0");
    let (lease, ()) = tokio::join!(network.acquire(&dhcp, &ipam), async {
        // The first message is lost.
        network.until("the interface to be brought up", || links().contains(",UP")).await;
        network.host.sh("ip link set srv0 up");
    });
    assert_eq!(lease.unwrap().address.to_string(), "10.5.0.100/24");
}
