"""A kubelet without an API server on a virtual node: static pods, probes, limits, statistics, restarts, shutdown and reboot."""

import importlib.util
import json
import os
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
IMAGE = "node.test/busybox:1"
KUBELET = "https://127.0.0.1:10250"
# Beside the emulated machine's other work, a probe takes long.
PROBE = {"periodSeconds": 5, "timeoutSeconds": 60, "failureThreshold": 3}

UNIT = b"""[Unit]
After=berth.service network.target
Wants=berth.service
[Service]
# The kubelet takes the node's address from the interface with the default route. This machine has no network card.
ExecStartPre=-/bin/sh -c 'ip link add node0 type veth peer name node1; ip address add 192.0.2.1/24 dev node0; \
ip link set node0 up; ip link set node1 up; ip route add default via 192.0.2.2'
ExecStart=/usr/local/bin/kubelet --config /etc/kubelet.json --hostname-override node --v 2
Restart=always
RestartSec=2
[Install]
WantedBy=multi-user.target
"""


def config(from_cri):
    return json.dumps({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "staticPodPath": "/etc/kubernetes/manifests",
        "containerRuntimeEndpoint": "unix:///run/berth/berth.sock",
        # The runtime tells its driver (RuntimeConfig): the kubelet must use that one, not this.
        "cgroupDriver": "cgroupfs",
        "failSwapOn": False,
        "address": "127.0.0.1",
        "healthzPort": 0,
        "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
        "authorization": {"mode": "AlwaysAllow"},
        "evictionHard": {"memory.available": "1Mi"},
        "runtimeRequestTimeout": "5m0s",
        "shutdownGracePeriod": "60s",
        "shutdownGracePeriodCriticalPods": "10s",
        "featureGates": {"PodAndContainerStatsFromCRI": from_cri},
    })


def manifest(name, script, resources=None, grace=1, **more):
    container = {"name": "work", "image": IMAGE, "imagePullPolicy": "Never", "command": ["sh", "-c", script], "resources": resources or {}}
    volumes = more.pop("volumes", [])
    return json.dumps({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "labels": {"app": name}},
        "spec": {"terminationGracePeriodSeconds": grace, "containers": [container | more], "volumes": volumes},
    })


PODS = {
    # Becomes ready by its HTTP probe, and counts in its log.
    "web": manifest(
        "web",
        "mkdir -p /www && echo hello >/www/index.html && httpd -p 8080 -h /www; "
        "i=0; while true; do echo count $i; i=$((i+1)); sleep 0.2; done",
        {"limits": {"cpu": "500m", "memory": "64Mi"}},
        readinessProbe={"httpGet": {"port": 8080, "path": "/"}, **PROBE},
    ),
    # Its probe fails after a while, so the kubelet restarts it.
    "sick": manifest(
        "sick", "touch /tmp/well; sleep 20; rm /tmp/well; sleep 100000",
        livenessProbe={"exec": {"command": ["cat", "/tmp/well"]}, **PROBE, "failureThreshold": 1},
    ),
    "eater": manifest("eater", "sleep 5; x=a; while true; do x=$x$x; done", {"limits": {"memory": "32Mi"}}),
    # It needs some seconds to end, and writes when it has.
    "graceful": manifest(
        "graceful", "trap 'sleep 5; echo done >>/srv/result; sync; exit 0' TERM; while true; do sleep 0.2; done",
        grace=40, volumeMounts=[{"name": "srv", "mountPath": "/srv"}],
        volumes=[{"name": "srv", "hostPath": {"path": "/srv/graceful", "type": "DirectoryOrCreate"}}],
    ),
}


def files(kubelet):
    """The additional files of the node."""
    return {
        "/usr/local/bin/kubelet": kubelet,
        "/etc/systemd/system/kubelet.service": UNIT,
        "/etc/kubelet.json": config(from_cri=False).encode(),
    } | {f"/root/manifests/{name}.json": text.encode() for name, text in PODS.items()}


class Kubelet:
    """The kubelet of a node."""

    def __init__(self, node):
        self.node = node

    def get(self, path):
        return self.node.run(f"curl -sSkf --max-time 120 {KUBELET}{path}")

    def pods(self):
        code, text = self.node.run(f"curl -sSkf --max-time 120 {KUBELET}/pods", check=False)
        if code != 0:
            return {}
        return {pod["metadata"]["labels"]["app"]: pod["status"] for pod in json.loads(text)["items"] or []}

    def until(self, what, condition, seconds=900):
        deadline = time.monotonic() + seconds
        while True:
            pods = self.pods()
            try:
                if condition(pods):
                    return pods
            except (KeyError, IndexError):
                pass
            if time.monotonic() > deadline:
                raise AssertionError(f"{what}: not in {seconds} s; the pods:\n{json.dumps(pods, indent=1)}")
            time.sleep(2)


def ready(status):
    return any(one["type"] == "Ready" and one["status"] == "True" for one in status.get("conditions", []))


def container(status):
    return status["containerStatuses"][0]


def kubelet(node, install, clean, counter, step, check):
    client = Kubelet(node)
    install(node)
    step("static pods start, and are ready by their probes")
    node.run("mkdir -p /etc/kubernetes/manifests && cp /root/manifests/*.json /etc/kubernetes/manifests/ && systemctl enable --now kubelet")
    client.until("the pods start", lambda pods: len(pods) == len(PODS) and ready(pods["web"]) and ready(pods["graceful"]))
    address = client.pods()["web"]["podIP"]
    check(node.run(f"curl -sS http://{address}:8080/") == "hello", "the pod's server does not answer")

    step("limits are those of the manifest, in the slices of the systemd driver")
    web = container(client.pods()["web"])["containerID"].removeprefix("berth://")
    pid = json.loads(node.run(f"crictl inspect {web}"))["info"]["pid"]
    cgroup = node.run(f"cut -d: -f3 /proc/{pid}/cgroup")
    check(cgroup.startswith("/kubepods.slice/") and cgroup.endswith(".scope"), f"cgroup: {cgroup}")
    limits = node.run(f"cat /sys/fs/cgroup{cgroup}/memory.max /sys/fs/cgroup{cgroup}/cpu.max")
    check(limits.split() == [str(64 << 20), "50000", "100000"], f"limits: {limits}")

    step("a failed liveness probe restarts the container; a container over its limit is OOMKilled and restarted")
    client.until("a restart by the probe", lambda pods: container(pods["sick"])["restartCount"] > 0)
    pods = client.until("a restart after the OOM kill", lambda pods: container(pods["eater"])["restartCount"] > 0)
    ended = [container(pods["eater"]).get(state, {}).get("terminated") for state in ("state", "lastState")]
    check(any(one and one["reason"] == "OOMKilled" for one in ended), f"states: {ended}")
    node.run("rm /etc/kubernetes/manifests/eater.json /etc/kubernetes/manifests/sick.json")
    client.until("pods end without their manifests", lambda pods: set(pods) == {"web", "graceful"})
    node.until("test $(crictl pods -q | wc -l) = 2")

    step("the kubelet's statistics are the same from berth and from its cAdvisor")
    compare(node, client, step, check)

    step("restart and upgrade of berth, and a restart of the kubelet: no container restarts, no log line is lost")
    before = {name: container(status)["containerID"] for name, status in client.pods().items()}
    for command in ["systemctl restart berth", "DEBIAN_FRONTEND=noninteractive dpkg -i /root/second.deb", "systemctl restart kubelet"]:
        node.run(command)
        node.until("crictl info >/dev/null")
        pods = client.until(f"ready after {command}", lambda pods: set(pods) == {"web", "graceful"} and ready(pods["web"]))
        after = {name: container(status)["containerID"] for name, status in pods.items()}
        check(after == before, f"containers after {command}: {after}, before: {before}")
        check(all(container(status)["restartCount"] == 0 for status in pods.values()), f"restarts after {command}")
    numbers = counter(node, "/var/log/pods/default_web-node_*/work/0.log*")
    check(numbers == list(range(len(numbers))) and numbers, "lines of the log are missing")

    step("shutdown of the node: the kubelet ends the pods with their grace period")
    node.send("systemctl poweroff")
    node.wait_off()

    step("after the reboot: nothing of the old boot, and the kubelet's pods run again")
    node.boot()
    check(node.run("cat /srv/graceful/result; true") == "done", "the container had no time to end")
    pods = client.until("pods after the reboot", lambda pods: set(pods) == {"web", "graceful"} and ready(pods["web"]))
    after = {name: container(status)["containerID"] for name, status in pods.items()}
    check(not set(after.values()) & set(before.values()), "a container of the old boot")
    clean(node)


def compare(node, client, step, check):
    """Compares the statistics by cAdvisor with those by the CRI, as tests/kubernetes/stats does."""
    spec = importlib.util.spec_from_file_location("stats", os.path.join(ROOT, "tests/kubernetes/stats.py"))
    stats = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(stats)
    answers = []
    for from_cri in [False, True]:
        node.run(f"cat >/etc/kubelet.json <<'END'\n{config(from_cri)}\nEND\nsystemctl restart kubelet")
        client.until("the pods are ready", lambda pods: set(pods) == {"web", "graceful"} and ready(pods["web"]))
        deadline = time.monotonic() + 600
        while not has_usage(summary := json.loads(client.get("/stats/summary"))):
            check(time.monotonic() < deadline, f"no statistics of the pods: {summary}")
            time.sleep(5)
        # The housekeeping of cAdvisor fills rates and file systems in its second round.
        time.sleep(40)
        answers.append((client.get("/metrics/cadvisor"), json.loads(client.get("/stats/summary"))))
    (by_cadvisor, summary_cadvisor), (by_cri, summary_cri) = answers
    problems = stats.compare_series(by_cadvisor, by_cri) + stats.compare_summaries(summary_cadvisor, summary_cri)
    check(not problems, "statistics differ:\n" + "\n".join(problems))


def has_usage(summary):
    boxes = [box for pod in summary["pods"] for box in pod.get("containers", [])]
    return len(boxes) == 2 and all("usageCoreNanoSeconds" in box.get("cpu", {}) for box in boxes)
