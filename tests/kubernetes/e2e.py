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
from cluster import REGISTRY_PORT, SERVER, Cluster, Processes, run, start_registry, until

HERE = os.path.dirname(os.path.abspath(__file__))
SOURCES = ["e2e_images.py", "../conformance/images.py", "../stand-ins/oci.py"]
# Features are not part of the conformance of a cluster. Serial specs expect to be alone. The slow specs of nodes resize pods, which
# the kubelet does not support on cgroup v1, or wait for minutes.
SERIAL = r"\[Serial\]"
SERIAL_FOCUS = r"\[Conformance\].*\[Serial\]"
FOCUS = r"\[NodeConformance\]|\[Conformance\]"
SKIP = r"\[Disruptive\]|\[Flaky\]|\[Feature:|\[NodeConformance\] \[Slow\]"


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
        processes = Processes(f"{work}/logs")
        start_registry(processes, work, f"{folder}.new")
        url = f"http://127.0.0.1:{REGISTRY_PORT}"
        try:
            until("the registry answers", lambda: urllib.request.urlopen(f"{url}/v2/", timeout=5), 30)
            os.makedirs(f"{work}/images")
            run(sys.executable, f"{HERE}/e2e_images.py", url, f"{work}/images", programs, busybox)
        finally:
            processes.stop()
        os.rename(f"{folder}.new", folder)
    return folder


def listed(programs, work, focus, skip):
    """The names of the specs that would run."""
    report = f"{work}/list.json"
    run(f"{programs}/e2e.test", "--ginkgo.dry-run", "--ginkgo.focus", focus, "--ginkgo.skip", skip, "--ginkgo.json-report", report,
        "--kubeconfig", "/nonexistent", "--provider", "skeleton",
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return specs.read(report)


def run_specs(programs, work, kubeconfig, focus, skip, procs):
    """Runs the specs and returns the path of the report, or none if there is none."""
    # Some specs leave files.
    os.makedirs(f"{work}/tmp")
    with open(f"{work}/logs/e2e.log", "wb") as log:
        process = subprocess.Popen(
            [f"{programs}/ginkgo", f"--procs={procs}", f"--focus={focus}", f"--skip={skip}", "--no-color", "--timeout=6h",
             "--keep-going", "--silence-skips", "--output-dir", work, "--json-report=report.json", f"{programs}/e2e.test", "--",
             "--kubeconfig", kubeconfig, "--host", SERVER, "--provider", "skeleton", "--kubectl-path", f"{programs}/kubectl",
             "--num-nodes", "2", "--node-os-distro", "debian"],
            stdout=log, stderr=log, cwd=work, start_new_session=True, env={**os.environ, "TMPDIR": f"{work}/tmp"})
        try:
            process.wait()
        except KeyboardInterrupt:
            print("interrupted: the report has the specs that have ended")
            # ginkgo writes its report.
            os.killpg(process.pid, signal.SIGINT)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
    report = f"{work}/report.json"
    if os.path.exists(report):
        return report
    print("e2e.test wrote no report:\n" + specs.tail(f"{work}/logs/e2e.log"))
    return None


def interrupted(_signal, _frame):
    raise KeyboardInterrupt


def keep(cluster):
    print(f"the cluster stays until Ctrl-C:\n    nsenter --target $(cat {cluster.work}/pid) --net --mount --pid "
          f"{cluster.programs}/kubectl --kubeconfig {cluster.admin} get pods -A", flush=True)
    signal.pause()


def save_logs(work, folder):
    if folder:
        shutil.copytree(f"{work}/logs", folder, dirs_exist_ok=True)
        if os.path.exists(f"{work}/report.json"):
            shutil.copy(f"{work}/report.json", folder)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--focus")
    for option in ["list", "record", "keep", "serial"]:
        parser.add_argument(f"--{option}", action="store_true")
    options = parser.parse_args()
    work, programs = os.environ["work"], os.environ["programs"]
    focus = options.focus or (SERIAL_FOCUS if options.serial else FOCUS)
    skip = SKIP if options.serial else f"{SERIAL}|{SKIP}"
    procs = "1" if options.serial else os.environ.get("BERTH_E2E_PROCS", "4")
    if options.list:
        print("\n".join(sorted(listed(programs, work, focus, skip).planned)))
        return 0
    signal.signal(signal.SIGTERM, interrupted)
    run("ip", "link", "set", "lo", "up")
    cluster = Cluster(work, programs, stand_ins(work, os.environ["cache"], programs, os.environ["busybox"]))
    started = time.monotonic()
    status = 1
    try:
        cluster.start()
        print(f"the cluster is ready after {time.monotonic() - started:.0f} s", flush=True)
        status = 0
        if focus != "-":
            report = run_specs(programs, work, cluster.admin, focus, skip, procs)
            status = 1
            if report:
                status = specs.report(report, HERE, record=options.record, focused=bool(options.focus), serial=options.serial)
        if options.keep:
            keep(cluster)
    except KeyboardInterrupt:
        print("interrupted")
    finally:
        for problem in cluster.processes.dead():
            print(problem)
        cluster.stop()
        save_logs(work, os.environ.get("BERTH_E2E_LOG"))
    return status


sys.exit(main())
