#!/usr/bin/env python3
"""The kubelet's checkpoint API with berth: a container is checkpointed, goes on, and is restored by the kubelet in
another pod, from an image of the checkpoint.

checkpoint.py KUBELET FOLDER: FOLDER is the work folder of tests/conformance/node.sh, with the daemon's socket.
"""

import hashlib
import json
import os
import ssl
import subprocess
import sys
import tarfile
import time
import urllib.error
import urllib.request

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "stand-ins"))

import oci  # noqa: E402
import stats  # noqa: E402

IMAGE = "localhost/checkpoint:1"

POD = stats.pod("counter", "i=0; while true; do i=$((i+1)); echo $i >/count; sleep 0.1; done", {})


def crictl(work, *arguments):
    endpoint = f"unix://{work}/berth.sock"
    command = [f"{os.environ['tools']}/crictl", "--runtime-endpoint", endpoint, "--image-endpoint", endpoint, *arguments]
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if result.returncode != 0:
        raise SystemExit(f"crictl {' '.join(arguments)}: {result.stderr}")
    return result.stdout.strip()


def post(path):
    """The kubelet's answer to a POST."""
    request = urllib.request.Request(f"https://127.0.0.1:{stats.PORT}{path}", method="POST")
    with urllib.request.urlopen(request, context=ssl._create_unverified_context(), timeout=300) as answer:
        return answer.read().decode()


def until(what, condition, seconds=300):
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        if time.monotonic() > deadline:
            raise SystemExit(f"{what}: not in {seconds} s")
        time.sleep(1)
    return result


def count(work, container):
    # The file is empty for a moment while the container writes it.
    return int(until("the file of the counter is empty", lambda: crictl(work, "exec", container, "cat", "/count")))


def container_of(kubelet, name):
    """The id and the restarts of a pod's running container, by the kubelet."""
    try:
        pods = {pod["metadata"]["labels"]["app"]: pod for pod in json.loads(kubelet.get("/pods"))["items"]}
        [status] = pods[name]["status"]["containerStatuses"]
    except (OSError, KeyError, TypeError, ValueError):
        return None
    return "running" in status["state"] and (status["containerID"].split("//")[1], status["restartCount"])


def checkpoint(kubelet, work):
    container, _ = until("the pod runs", lambda: container_of(kubelet, "counter"))
    until("the counter runs", lambda: count(work, container) > 5)
    before = count(work, container)
    [archive] = json.loads(post("/checkpoint/default/counter-node/work"))["items"]
    with tarfile.open(archive) as content:
        names = set(content.getnames())
    missing = {"config.dump", "spec.dump", "status.dump", "checkpoint/inventory.img", "rootfs-diff.tar"} - names
    assert not missing, f"the archive lacks {missing}: {names}"
    then = count(work, container)
    until("the container goes on", lambda: count(work, container) > then)
    assert container_of(kubelet, "counter") == (container, 0), "the container was restarted"
    try:
        raise SystemExit(f"a checkpoint of a missing container: {post('/checkpoint/default/counter-node/other')}")
    except urllib.error.HTTPError as error:
        assert error.code == 404, error.code
    print(f"checkpoint by the kubelet: {os.path.getsize(archive) >> 10} KiB; the container goes on")
    return archive, before


def image_of(archive, folder):
    """An OCI archive with an image of a checkpoint, as the documentation of Kubernetes makes it with buildah."""
    store = oci.Store(folder)
    with open(archive, "rb") as file:
        layer = file.read()
    media = "application/vnd.oci.image"
    config = {"architecture": oci.ARCH, "os": "linux", "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(layer).hexdigest()]}}
    manifest = store.put(json.dumps({
        "schemaVersion": 2,
        "mediaType": f"{media}.manifest.v1+json",
        "config": store.put(json.dumps(config).encode(), f"{media}.config.v1+json"),
        "layers": [store.put(layer, f"{media}.layer.v1.tar")],
        "annotations": {"io.kubernetes.cri-o.annotations.checkpoint.name": "work"},
    }).encode(), f"{media}.manifest.v1+json")
    manifest["annotations"] = {"io.containerd.image.name": IMAGE, "org.opencontainers.image.ref.name": "1"}
    os.rename(f"{folder}/blobs", f"{folder}/sha256")
    os.mkdir(f"{folder}/blobs")
    os.rename(f"{folder}/sha256", f"{folder}/blobs/sha256")
    stats.write(f"{folder}/oci-layout", {"imageLayoutVersion": "1.0.0"})
    stats.write(f"{folder}/index.json", {"schemaVersion": 2, "manifests": [manifest]})
    subprocess.run(["tar", "-C", folder, "-cf", f"{folder}.tar", "."], check=True)
    return f"{folder}.tar"


def restore(kubelet, work, archive, then):
    """The kubelet creates another static pod from an image of the checkpoint."""
    file = image_of(archive, f"{work}/checkpoint-image")
    subprocess.run([os.environ["BERTH_BIN"], "image", "load", "--config", f"{work}/config.toml", file], check=True, stdout=subprocess.DEVNULL)
    other = stats.pod("restored", "this command is not run", {})
    other["spec"]["containers"][0] |= {"image": IMAGE, "imagePullPolicy": "Never"}
    stats.write(f"{work}/manifests/restored.json", other)
    os.unlink(f"{work}/manifests/counter.json")
    container, restarts = until("the restored pod runs", lambda: container_of(kubelet, "restored"))
    now = count(work, container)
    assert restarts == 0 and now >= then, f"the counter was {then} at the checkpoint, and is {now}; restarts: {restarts}"
    until("the restored container counts", lambda: count(work, container) > now)
    print(f"restored by the kubelet in another pod: the counter was {then} at the checkpoint, and is {now}")


def main():
    program, work = sys.argv[1:]
    os.environ["CGROUP_ROOT"] = f"/berth-checkpoint-{os.getpid()}"
    stats.make_cgroup_root()
    os.makedirs(f"{work}/manifests")
    stats.write(f"{work}/manifests/counter.json", POD)
    try:
        kubelet = stats.Kubelet(program, work, from_cri=False)
        try:
            archive, then = checkpoint(kubelet, work)
            restore(kubelet, work, archive, then)
        finally:
            kubelet.stop()
    finally:
        stats.remove_pods(work)
        stats.remove_cgroup_root()


if __name__ == "__main__":
    main()
