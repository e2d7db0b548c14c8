"""A cluster of two nodes on this machine: Kubernetes' control plane, and for each node a berth daemon, a kubelet and a kube-proxy.

The control plane runs in the network namespace of this process. Each node has a network, mount and UTS namespace of its own,
linked to the control plane's bridge, and a cgroup of its own below that of the cluster:

    192.0.2.1       bridge hub0: registry, etcd, API server, controller manager, scheduler, tests
    192.0.2.11, 12  the nodes; their pods are in 10.88.1.0/24 and 10.88.2.0/24
    10.96.0.0/16    services, by kube-proxy in nftables
"""

import json
import os
import signal
import ssl
import subprocess
import time
import urllib.request

import manifests
import stats
from pki import Pki

HUB = "192.0.2.1"
REGISTRY_PORT = 5000
SERVER = f"https://{HUB}:6443"
NODES = {"node1": ("192.0.2.11", "10.88.1.0/24"), "node2": ("192.0.2.12", "10.88.2.0/24")}
PODS = "10.88.0.0/16"
SERVICES = "10.96.0.0/16"
SERVICE_OF_API = "10.96.0.1"
REGISTRIES = ["registry.k8s.io", "gcr.io"]


def run(*command, **options):
    return subprocess.run([str(word) for word in command], check=True, **options)


def write(path, content):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.write(content if isinstance(content, str) else json.dumps(content))
    return path


def until(what, condition, seconds=120):
    last, error = time.monotonic() + seconds, None
    while time.monotonic() < last:
        try:
            if condition():
                return
            error = None
        except (OSError, subprocess.CalledProcessError, ValueError, KeyError) as caught:
            error = caught
        time.sleep(0.5)
    raise SystemExit(f"{what}: not in {seconds} s ({error})")


class Processes:
    """The processes of the cluster, each with a log file."""

    def __init__(self, folder):
        self.folder = folder
        self.running = []
        os.makedirs(folder, exist_ok=True)

    def start(self, name, *command, **options):
        with open(f"{self.folder}/{name}.log", "ab") as log:
            # A Ctrl-C ends them in the order of stop().
            process = subprocess.Popen([str(word) for word in command], stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                                       start_new_session=True, **options)
        self.running.append((name, process))
        return process

    def dead(self):
        return [f"{name} ended with {process.returncode}" for name, process in self.running if process.poll() is not None]

    def stop(self):
        for _, process in reversed(self.running):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def start_registry(processes, work, images):
    """Debian's docker-registry with the images of a folder."""
    config = write(f"{work}/registry.json", {
        "version": "0.1", "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": images}, "delete": {"enabled": True}},
        "http": {"addr": f"0.0.0.0:{REGISTRY_PORT}", "secret": "e2e"},
    })
    processes.start("registry", "docker-registry", "serve", config, env={**os.environ, "OTEL_TRACES_EXPORTER": "none"})


class Node:
    """A node: its namespaces, daemon, kubelet and kube-proxy."""

    def __init__(self, cluster, name, number):
        self.cluster, self.name = cluster, name
        self.address, self.subnet = NODES[name]
        self.folder = f"{cluster.work}/{name}"
        self.number = number
        self.holder = None

    def enter(self, *command):
        """The command line that runs a command in the node's namespaces."""
        return ["nsenter", f"--target={self.holder.pid}", "--net", "--mount", "--uts", "--", *command]

    def inside(self, *command):
        run(*self.enter(*command))

    def make_namespaces(self):
        """The holder's namespaces live as long as the holder. Mounts propagate inside the node only, as on a host."""
        ready = f"{self.folder}/ready"
        os.makedirs(self.folder)
        script = 'mount --make-rshared / && hostname "$1" && touch "$2" && exec sleep infinity'
        self.holder = self.cluster.processes.start(
            f"{self.name}-holder", "unshare", "--net", "--mount", "--uts", "--propagation", "private",
            "sh", "-c", script, "sh", self.name, ready)
        until(f"namespaces of {self.name}", lambda: os.path.exists(ready))
        # Folders with fixed paths that kubelets would share.
        for path in ["/run", "/var/log", "/var/lib/kubelet", "/opt"]:
            folder = self.folder + path
            os.makedirs(folder)
            self.inside("mount", "--bind", folder, path)
            # Its mounts do not appear at both paths.
            self.inside("mount", "--make-private", path)
            self.inside("mount", "--make-rshared", path)

    def make_network(self):
        outer = f"hub-{self.name}"
        run("ip", "link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", self.holder.pid)
        run("ip", "link", "set", outer, "master", "hub0", "up")
        run("ip", "route", "add", self.subnet, "via", self.address)
        self.inside("ip", "link", "set", "lo", "up")
        self.inside("ip", "address", "add", f"{self.address}/24", "dev", "eth0")
        self.inside("ip", "link", "set", "eth0", "up")
        self.inside("ip", "route", "add", "default", "via", HUB)
        for other, (address, subnet) in NODES.items():
            if other != self.name:
                self.inside("ip", "route", "add", subnet, "via", address)
        for name in ["net.ipv4.ip_forward", "net.bridge.bridge-nf-call-iptables"]:
            self.inside("sysctl", "-q", "-w", f"{name}=1")

    def start_daemon(self):
        folder = self.folder
        for host in REGISTRIES:
            url = f"http://{HUB}:{REGISTRY_PORT}"
            write(f"{folder}/certs.d/{host}/hosts.toml", f'server = "{url}"\n[host."{url}"]\ncapabilities = ["pull", "resolve"]\n')
        write(f"{folder}/net.d/10-e2e.conflist", manifests.conflist(self.subnet))
        self.socket = f"{folder}/berth.sock"
        config = {
            "socket": self.socket, "root": f"{folder}/root", "state": f"{folder}/state", "certs_dir": f"{folder}/certs.d",
            "registries_conf": f"{folder}/registries.conf", "auth_file": [], "signature_policy": f"{folder}/policy.json",
            "cni_conf_dir": f"{folder}/net.d", "cni_data_dir": f"{folder}/addresses", "cgroup_driver": "cgroupfs",
            "log_level": os.environ.get("BERTH_LOG", "debug"), "restrict_oom_score_adj": True,
        }
        lines = [f"{key} = {json.dumps(value)}" for key, value in config.items()]
        lines += ["[nri]", "enable = false", "[network]", 'bridge = "pods0"', f'subnets = ["{self.subnet}"]']
        path = write(f"{folder}/config.toml", "\n".join(lines) + "\n")
        self.cluster.processes.start(f"{self.name}-berth", *self.enter(os.environ["BERTH_BIN"], "serve", "--config", path))
        until(f"the daemon of {self.name}", lambda: os.path.exists(self.socket))

    def start_kubelet(self):
        cluster, folder = self.cluster, self.folder
        kubeconfig = cluster.pki.kubeconfig(self.name, SERVER, f"system:node:{self.name}", "system:nodes")
        config = write(f"{folder}/kubelet.json", manifests.kubelet(
            self.socket, f"{cluster.cgroup}/{self.name}", cluster.pki.path("ca.crt"), self.address))
        cluster.processes.start(
            f"{self.name}-kubelet", *self.enter(
                f"{cluster.programs}/kubelet", "--config", config, "--kubeconfig", kubeconfig, "--hostname-override", self.name,
                "--node-ip", self.address, "--cert-dir", f"{folder}/kubelet-certs", "--v", "2"))

    def start_proxy(self):
        cluster = self.cluster
        kubeconfig = cluster.pki.kubeconfig(f"{self.name}-proxy", SERVER, "system:kube-proxy")
        config = write(f"{self.folder}/proxy.json", manifests.proxy(kubeconfig, self.name, PODS))
        cluster.processes.start(f"{self.name}-proxy", *self.enter(f"{cluster.programs}/kube-proxy", "--config", config, "--v", "2"))


class Cluster:
    """The control plane and its nodes. `work` is a new folder, `programs` that of tools.sh."""

    def __init__(self, work, programs, images):
        self.work, self.programs, self.images = work, programs, images
        self.processes = Processes(f"{work}/logs")
        self.cgroup = os.environ["CGROUP_ROOT"]
        self.nodes = [Node(self, name, number) for number, name in enumerate(NODES, 1)]
        self.pki = Pki(f"{work}/pki")
        self.admin = self.pki.kubeconfig("admin", SERVER, "admin", "system:masters")

    def start(self):
        run("ip", "link", "add", "hub0", "type", "bridge")
        run("ip", "address", "add", f"{HUB}/24", "dev", "hub0")
        run("ip", "link", "set", "hub0", "up")
        run("sysctl", "-q", "-w", "net.ipv4.ip_forward=1", "net.bridge.bridge-nf-call-iptables=0")
        start_registry(self.processes, self.work, self.images)
        self.start_control_plane()
        stats.make_cgroup_root()
        for node in self.nodes:
            self.make_cgroup(node.name)
            node.make_namespaces()
            node.make_network()
            node.start_daemon()
            node.start_kubelet()
            node.start_proxy()
        until("the nodes are ready", lambda: self.ready_nodes() == len(self.nodes))
        for manifest in manifests.coredns():
            self.apply(manifest)
        until("CoreDNS is ready", lambda: self.kubectl(
            "get", "deployment", "--namespace=kube-system", "coredns", "-o=jsonpath={.status.readyReplicas}") == "1", 180)

    def make_cgroup(self, name):
        """stats.py makes the cgroup of the cluster."""
        for folder in stats.hierarchies():
            root = folder + self.cgroup
            os.makedirs(f"{root}/{name}", exist_ok=True)
            for key in ("cpuset.cpus", "cpuset.mems"):
                if os.path.exists(f"{root}/{key}"):
                    with open(f"{root}/{key}", encoding="utf-8") as source, open(f"{root}/{name}/{key}", "w", encoding="utf-8") as file:
                        file.write(source.read())

    def start_control_plane(self):
        pki, start, programs = self.pki, self.processes.start, self.programs
        pki.sign("server", "kube-apiserver", hosts=[
            f"IP:{HUB}", f"IP:{SERVICE_OF_API}", "IP:127.0.0.1", "DNS:kubernetes", "DNS:kubernetes.default", "DNS:kubernetes.default.svc",
            "DNS:kubernetes.default.svc.cluster.local"])
        pki.sign("kubelet-client", "kube-apiserver", "system:masters")
        pki.sign("front-proxy", "front-proxy-client")
        start("etcd", f"{programs}/etcd", "--data-dir", f"{self.work}/etcd", "--unsafe-no-fsync",
              "--listen-client-urls", "http://127.0.0.1:2379", "--advertise-client-urls", "http://127.0.0.1:2379")
        start("apiserver", f"{programs}/kube-apiserver", *manifests.apiserver(pki, HUB, SERVICES))
        until("the API server is ready", self.healthy)
        for name in ["kube-controller-manager", "kube-scheduler"]:
            config = pki.kubeconfig(name, SERVER, f"system:{name}")
            more = manifests.controller_manager(pki) if name == "kube-controller-manager" else []
            start(name, f"{programs}/{name}", "--kubeconfig", config, "--authentication-kubeconfig", config,
                  "--authorization-kubeconfig", config, "--leader-elect=false", "--v=2", *more)

    def healthy(self):
        if self.processes.dead():
            raise SystemExit("; ".join(self.processes.dead()))
        context = ssl.create_default_context(cafile=self.pki.path("ca.crt"))
        with urllib.request.urlopen(f"{SERVER}/readyz", context=context, timeout=5) as answer:
            return answer.status == 200

    def kubectl(self, *arguments, **options):
        return run(f"{self.programs}/kubectl", "--kubeconfig", self.admin, *arguments, stdout=subprocess.PIPE, text=True, **options).stdout

    def apply(self, manifest):
        self.kubectl("apply", "--filename=-", input=json.dumps(manifest))

    def ready_nodes(self):
        nodes = json.loads(self.kubectl("get", "nodes", "--output=json"))["items"]
        return sum(condition["type"] == "Ready" and condition["status"] == "True"
                   for node in nodes for condition in node["status"]["conditions"])

    def stop(self):
        """Removes all pods, then ends all processes. The mounts and interfaces are removed with the namespaces."""
        for name, process in self.processes.running:
            if name.endswith("-kubelet"):
                process.terminate()
        for node in self.nodes:
            if node.holder and os.path.exists(f"{node.folder}/berth.sock"):
                endpoint = f"unix://{node.folder}/berth.sock"
                subprocess.run([f"{os.environ['tools']}/crictl", "--timeout=60s", "--runtime-endpoint", endpoint, "--image-endpoint", endpoint,
                                "rmp", "--all", "--force"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
        self.processes.stop()
