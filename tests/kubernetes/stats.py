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
    "container_tasks_state": "taskstats; cAdvisor always reports 0 here, because the kubelet does not enable it",
    "container_cpu_load": "taskstats; cAdvisor always reports 0 here, because the kubelet does not enable it",
    "container_cpu_load_d": "taskstats; cAdvisor always reports 0 here, because the kubelet does not enable it",
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
        context = __import__("ssl")._create_unverified_context()
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
                         and "usageBytes" in found.get("memory", {}) and "network" in found]
                if len(ready) == len(PODS):
                    # The housekeeping of cAdvisor fills rates and file systems in its second round.
                    time.sleep(25)
                    return kubelet.get("/metrics/cadvisor"), json.loads(kubelet.get("/stats/summary"))
                error = f"{len(ready)} of {len(PODS)} pods in the summary"
            except (OSError, urllib.error.URLError, KeyError) as caught:
                error = caught
            time.sleep(2)
        raise SystemExit(f"the kubelet does not serve statistics of the pods: {error}")
    finally:
        kubelet.stop()


def fields(value, path=""):
    """Returns the paths of the leaves of a JSON document."""
    if isinstance(value, dict):
        return {leaf for key, inner in value.items() for leaf in fields(inner, f"{path}.{key}")}
    if isinstance(value, list):
        return {leaf for inner in value for leaf in fields(inner, f"{path}[]")}
    return {path}


def main():
    program, work = sys.argv[1:]
    os.environ["CGROUP_ROOT"] = f"/berth-stats-{os.getpid()}"
    os.makedirs(f"{work}/manifests")
    for manifest in PODS:
        write(f"{work}/manifests/{manifest['metadata']['name']}.json", manifest)
    by_cadvisor, summary_cadvisor = observe(program, work, from_cri=False)
    by_cri, summary_cri = observe(program, work, from_cri=True)
    for name, text in (("cadvisor", by_cadvisor), ("cri", by_cri)):
        with open(f"{os.environ.get('STATS_OUT', work)}/{name}.prom", "w", encoding="utf-8") as file:
            file.write(text)
    write(f"{os.environ.get('STATS_OUT', work)}/summary-cadvisor.json", summary_cadvisor)
    write(f"{os.environ.get('STATS_OUT', work)}/summary-cri.json", summary_cri)


if __name__ == "__main__":
    main()
