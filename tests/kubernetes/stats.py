#!/usr/bin/env python3
"""Compares a kubelet's statistics from the CRI with those of its cAdvisor, for the same static pods.

stats.py KUBELET FOLDER: FOLDER is the work folder of tests/conformance/node.sh, with the daemon's socket.

The kubelet runs twice without an API server, with and without the feature gate PodAndContainerStatsFromCRI; the pods live on
between. Each series of cAdvisor for a container or pod (found by the cgroup path in `id`) must exist from the CRI, with the same
additional labels and a close value. Exceptions have a reason each.
"""

import json
import os
import re
import signal
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request

PORT = 10355
IMAGE = "registry.k8s.io/e2e-test-images/busybox:1.29-2"

# Labels that name the object. All others distinguish series of one object.
IDENTITY = {"container", "id", "image", "name", "namespace", "pod"}

# Series of cAdvisor that berth does not have, by the start of the name, with the reason.
NOT_FROM_CRI = {
    "container_scrape_error": "it is about cAdvisor's own scrape",
    "container_health_state": "health checks are a feature of docker; for other runtimes cAdvisor always reports -1",
    "container_tasks_state": "taskstats; cAdvisor always reports 0 here, because the kubelet does not enable it",
    "container_cpu_load": "taskstats; cAdvisor always reports 0 here, because the kubelet does not enable it",
    "container_cpu_load_d": "taskstats; cAdvisor always reports 0 here, because the kubelet does not enable it",
}

# Fields of cAdvisor's summary that berth does not have, as patterns, with the reason.
NOT_IN_CRI_SUMMARY = {
    r"\.swap\..*": "the CRI's LinuxPodSandboxStats has no field for the swap of a pod",
    r".*\.psi\..*|\.io\.time": "on cgroup v1 the kernel does not measure pressure, and cAdvisor reports 0",
}

# Gauges and counters that change between the two runs of the kubelet: only their presence is compared.
MOVING = re.compile(
    r"container_(last_seen|cpu_.*_total|memory_(failures_total|cache|usage_bytes|working_set_bytes|rss|max_usage_bytes|kernel_usage"
    r"|total_(in)?active_file_bytes|mapped_file|failcnt)|network_.*_total|fs_.*|blkio_.*|processes|threads|file_descriptors|sockets"
    r"|pressure_.*|start_time_seconds)"
)


def pod(name, script, resources):
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "labels": {"app": name}},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [
                {
                    "name": "work",
                    "image": IMAGE,
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["sh", "-c", script],
                    "resources": resources,
                }
            ],
        },
    }


PODS = [
    pod("limited", "dd if=/dev/zero of=/data bs=1M count=8; while true; do sleep 1; done",
        {"limits": {"cpu": "500m", "memory": "64Mi"}}),
    pod("free", "while true; do ls / >/dev/null; sleep 0.2; done", {}),
]


def write(path, content):
    with open(path, "w", encoding="utf-8") as file:
        json.dump(content, file)


class Kubelet:
    """A kubelet without an API server."""

    def __init__(self, program, work, from_cri):
        self.log = open(f"{work}/kubelet-{'cri' if from_cri else 'cadvisor'}.log", "wb")
        write(f"{work}/kubelet.json", {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "staticPodPath": f"{work}/manifests",
            "containerRuntimeEndpoint": f"unix://{work}/berth.sock",
            "imageServiceEndpoint": f"unix://{work}/berth.sock",
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": os.environ["CGROUP_ROOT"],
            "failCgroupV1": False,
            "failSwapOn": False,
            "address": "127.0.0.1",
            "port": PORT,
            "healthzPort": 0,
            "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
            "authorization": {"mode": "AlwaysAllow"},
            "evictionHard": {"memory.available": "1Mi"},
            "enforceNodeAllocatable": ["none"],
            "localStorageCapacityIsolation": True,
            "podLogsDir": f"{work}/pod-logs",
            "volumePluginDir": f"{work}/volume-plugins",
            "featureGates": {"PodAndContainerStatsFromCRI": from_cri},
        })
        self.process = subprocess.Popen(
            [program, "--config", f"{work}/kubelet.json", "--root-dir", f"{work}/kubelet", "--cert-dir", f"{work}/kubelet-certs",
             "--hostname-override", "node", "--v", "2"],
            stdout=self.log, stderr=self.log)

    def get(self, path):
        context = ssl._create_unverified_context()
        with urllib.request.urlopen(f"https://127.0.0.1:{PORT}{path}", context=context, timeout=30) as answer:
            return answer.read().decode()

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)
        self.log.close()


def series(text):
    """Returns {(name, id): {other labels: value}} and the labels of each id."""
    found, identities = {}, {}
    for line in text.splitlines():
        match = re.match(r"(container_\w+)\{(.*)\} (\S+)", line)
        if not match:
            continue
        labels = dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', match[2]))
        other = tuple(sorted((key, value) for key, value in labels.items() if key not in IDENTITY))
        found.setdefault((match[1], labels.get("id", "")), {})[other] = float(match[3])
        identities[labels.get("id", "")] = {key: value for key, value in labels.items() if key in IDENTITY}
    return found, identities


def hierarchies():
    """Returns the mount points of the cgroup hierarchies."""
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        return [line.split()[4] for line in file if " - cgroup" in line]


def make_cgroup_root():
    """The kubelet wants its root to exist in each hierarchy."""
    for folder in hierarchies():
        root = folder + os.environ["CGROUP_ROOT"]
        os.makedirs(root, exist_ok=True)
        # An empty cpuset accepts no process (cgroup-v1/cpusets.rst).
        for name in ("cpuset.cpus", "cpuset.mems"):
            if os.path.exists(f"{root}/{name}"):
                with open(f"{folder}/{name}", encoding="utf-8") as source, open(f"{root}/{name}", "w", encoding="utf-8") as file:
                    file.write(source.read())


def remove_cgroup_root():
    for folder in hierarchies():
        for path, _, _ in os.walk(folder + os.environ["CGROUP_ROOT"], topdown=False):
            os.rmdir(path)


def remove_pods(work):
    endpoint = f"unix://{work}/berth.sock"
    crictl = [f"{os.environ['tools']}/crictl", "--runtime-endpoint", endpoint, "--image-endpoint", endpoint]
    subprocess.run([*crictl, "rmp", "--all", "--force"], stdout=subprocess.DEVNULL, check=True)


def observe(program, work, from_cri):
    """Runs a kubelet until both pods are in its statistics; returns its metrics and its summary."""
    kubelet = Kubelet(program, work, from_cri)
    try:
        last, error = time.monotonic() + 300, None
        while time.monotonic() < last:
            if kubelet.process.poll() is not None:
                raise SystemExit(f"the kubelet ended with {kubelet.process.returncode}")
            try:
                summary = json.loads(kubelet.get("/stats/summary"))
                ready = [found for found in summary["pods"]
                         if any("usageCoreNanoSeconds" in box.get("cpu", {}) for box in found.get("containers", []))
                         ]
                if len(ready) == len(PODS):
                    # The housekeeping of cAdvisor fills rates and file systems in its second round.
                    time.sleep(25)
                    return kubelet.get("/metrics/cadvisor"), json.loads(kubelet.get("/stats/summary"))
                error = f"{len(ready)} of {len(PODS)} pods in the summary: {json.dumps(summary)}"
            except (OSError, urllib.error.URLError, KeyError) as caught:
                error = caught
            time.sleep(2)
        raise SystemExit(f"the kubelet does not serve statistics of the pods: {error}")
    finally:
        kubelet.stop()


def fields(value, path=""):
    """Returns the leaves of a JSON document by their path."""
    if isinstance(value, dict):
        return {leaf: inner for key, part in value.items() for leaf, inner in fields(part, f"{path}.{key}").items()}
    if isinstance(value, list):
        return {leaf: inner for part in value for leaf, inner in fields(part, f"{path}[]").items()}
    return {path: value}


def close(before, after):
    """Whether a value of the second run fits that of the first: the pods are the same, some time later."""
    return abs(before - after) <= 0.05 * max(abs(before), abs(after), 1)


def compare_series(by_cadvisor, by_cri):
    """Returns the differences between the metrics for the objects that berth reports."""
    cadvisor, _ = series(by_cadvisor)
    cri, identities = series(by_cri)
    problems, compared = [], 0
    for identity, labels in identities.items():
        if not labels.get("pod"):
            problems.append(f"{identity}: no label pod from the CRI")
        for (name, of), expected in cadvisor.items():
            if of != identity or any(name == known or name.startswith(known + "_") for known in NOT_FROM_CRI):
                continue
            found = cri.get((name, of), {})
            for other, value in expected.items():
                # cAdvisor has a series for each device of the host, also those that the container never used.
                if other not in found and value == 0:
                    continue
                compared += 1
                if other not in found:
                    problems.append(f"{identity}: {name}{dict(other)} = {value} is missing from the CRI")
                elif not MOVING.fullmatch(name) and not close(value, found[other]):
                    problems.append(f"{identity}: {name}{dict(other)}: {value} from cAdvisor, {found[other]} from the CRI")
    more = {name for name, of in cri} - {name for name, of in cadvisor}
    print(f"{len(identities)} objects, {compared} series compared; only from the CRI: {', '.join(sorted(more)) or 'none'}")
    return problems


def compare_summaries(by_cadvisor, by_cri):
    """Returns the fields of pods and containers that only cAdvisor's summary has."""
    problems = []
    pods = {found["podRef"]["name"]: found for found in by_cri["pods"]}
    for expected in by_cadvisor["pods"]:
        name = expected["podRef"]["name"]
        left, right = fields(expected), fields(pods.get(name, {}))
        for path, value in left.items():
            if path not in right and not any(re.fullmatch(known, path) and not (".psi." in path and value)
                                             for known in NOT_IN_CRI_SUMMARY):
                problems.append(f"summary of {name}: {path} = {value} is missing from the CRI")
        print(f"summary of {name}: {len(left)} fields; only from the CRI: {', '.join(sorted(set(right) - set(left))) or 'none'}")
    return problems


def main():
    program, work = sys.argv[1:]
    os.environ["CGROUP_ROOT"] = f"/berth-stats-{os.getpid()}"
    make_cgroup_root()
    os.makedirs(f"{work}/manifests")
    for manifest in PODS:
        write(f"{work}/manifests/{manifest['metadata']['name']}.json", manifest)
    try:
        metrics_cadvisor, summary_cadvisor = observe(program, work, from_cri=False)
        metrics_cri, summary_cri = observe(program, work, from_cri=True)
    finally:
        remove_pods(work)
        remove_cgroup_root()
    out = os.environ.get("BERTH_STATS_LOG")
    if out:
        for name, text in (("cadvisor.prom", metrics_cadvisor), ("cri.prom", metrics_cri)):
            with open(f"{out}/{name}", "w", encoding="utf-8") as file:
                file.write(text)
        write(f"{out}/summary-cadvisor.json", summary_cadvisor)
        write(f"{out}/summary-cri.json", summary_cri)
    problems = compare_series(metrics_cadvisor, metrics_cri) + compare_summaries(summary_cadvisor, summary_cri)
    for problem in problems:
        print(problem)
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
