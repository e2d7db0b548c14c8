#!/usr/bin/env python3
"""Runs specs of e2e.test in a cluster, and reports. tests/kubernetes/run calls it in new namespaces and describes the options."""

import argparse
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request

import specs
from cluster import REGISTRY_PORT, SERVER, Cluster, Processes, run, until

HERE = os.path.dirname(os.path.abspath(__file__))
SOURCES = ["e2e_images.py", "../conformance/images.py", "../stand-ins/oci.py"]
# Features are not part of the conformance of a cluster. Serial specs expect to be alone. The slow specs of nodes resize pods, which
# the kubelet does not support on cgroup v1, or wait for minutes.
FOCUS = r"\[NodeConformance\]|\[Conformance\]"
SKIP = r"\[Serial\]|\[Disruptive\]|\[Flaky\]|\[Feature:|\[NodeConformance\] \[Slow\]"


def stand_ins(work, cache, programs, busybox):
    """Returns the folder of a registry with the images. They are built once for each version of the scripts."""
    stamp = hashlib.sha256()
    for name in SOURCES:
        with open(f"{HERE}/{name}", "rb") as file:
            stamp.update(file.read())
    folder = f"{cache}/e2e-images-{os.path.basename(programs)}-{stamp.hexdigest()[:16]}"
    if not os.path.isdir(folder):
        print(f"building the stand-in images once in {folder}", flush=True)
        shutil.rmtree(f"{folder}.new", ignore_errors=True)
        os.makedirs(f"{folder}.new")
        builder = Cluster.__new__(Cluster)
        builder.work, builder.images, builder.processes = work, f"{folder}.new", Processes(f"{work}/logs")
        builder.start_registry()
        url = f"http://127.0.0.1:{REGISTRY_PORT}"
        try:
            until("the registry answers", lambda: urllib.request.urlopen(f"{url}/v2/", timeout=5), 30)
            os.makedirs(f"{work}/images")
            run(sys.executable, f"{HERE}/e2e_images.py", url, f"{work}/images", programs, busybox)
        finally:
            builder.processes.stop()
        os.rename(f"{folder}.new", folder)
    return folder


def listed(programs, work, focus):
    """The names of the specs that would run."""
    report = f"{work}/list.json"
    run(f"{programs}/e2e.test", "--ginkgo.dry-run", "--ginkgo.focus", focus, "--ginkgo.skip", SKIP, "--ginkgo.json-report", report,
        "--kubeconfig", "/nonexistent", "--provider", "skeleton",
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return specs.read(report)


def run_specs(programs, work, kubeconfig, focus):
    """Runs the specs and returns the path of the report, or none if there is none."""
    procs = os.environ.get("BERTH_E2E_PROCS", "4")
    with open(f"{work}/logs/e2e.log", "wb") as log:
        process = subprocess.Popen(
            [f"{programs}/ginkgo", f"--procs={procs}", f"--focus={focus}", f"--skip={SKIP}", "--no-color", "--timeout=6h",
             "--keep-going", "--silence-skips", "--output-dir", work, "--json-report=report.json", f"{programs}/e2e.test", "--",
             "--kubeconfig", kubeconfig, "--host", SERVER, "--provider", "skeleton", "--kubectl-path", f"{programs}/kubectl",
             "--num-nodes", "2", "--node-os-distro", "debian"],
            stdout=log, stderr=log, cwd=work, start_new_session=True)
        try:
            process.wait()
        except BaseException:
            # ginkgo writes the report of what has run, if it is interrupted.
            os.killpg(process.pid, signal.SIGINT)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
            raise
    report = f"{work}/report.json"
    return report if os.path.exists(report) else None


def interrupted(_signal, _frame):
    raise KeyboardInterrupt


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--focus")
    for option in ["list", "record", "keep"]:
        parser.add_argument(f"--{option}", action="store_true")
    options = parser.parse_args()
    work, programs = os.environ["work"], os.environ["programs"]
    focus = options.focus or FOCUS
    if options.list:
        print("\n".join(sorted(listed(programs, work, focus).planned)))
        return 0
    signal.signal(signal.SIGTERM, interrupted)
    run("ip", "link", "set", "lo", "up")
    images = stand_ins(work, os.environ["cache"], programs, os.environ["busybox"])
    cluster = Cluster(work, programs, images)
    started = time.monotonic()
    status = 1
    try:
        cluster.start()
        print(f"the cluster is ready after {time.monotonic() - started:.0f} s", flush=True)
        if focus == "-":
            status = 0
        else:
            report = run_specs(programs, work, cluster.admin, focus)
            if not report:
                print("e2e.test wrote no report:\n" + specs.tail(f"{work}/logs/e2e.log"))
            else:
                status = specs.report(report, HERE, record=options.record, focused=bool(options.focus))
        if options.keep:
            # This process is the second of its PID namespace; /proc/self/status does not have the pid outside.
            print(f"the cluster stays until Ctrl-C:\n    nsenter --target $(pgrep --full --oldest {HERE}/e2e.py) --net --mount --pid "
                  f"{programs}/kubectl --kubeconfig {cluster.admin} get pods -A", flush=True)
            signal.pause()
    except KeyboardInterrupt:
        print("interrupted")
    finally:
        for problem in cluster.processes.dead():
            print(problem)
        cluster.stop()
        logs = os.environ.get("BERTH_E2E_LOG")
        if logs:
            cluster.save_logs(logs)
            if os.path.exists(f"{work}/report.json"):
                shutil.copy(f"{work}/report.json", logs)
    return status


sys.exit(main())
