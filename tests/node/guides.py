"""Runs the commands of docs/guides on a virtual node, as written."""

import hashlib
import io
import os
import re
import subprocess
import tarfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
GUIDES = os.path.join(ROOT, "docs/guides")
# In this order: each guide continues on the node of the one before it.
ORDER = ["from-containerd", "install", "air-gapped", "user-namespaces", "runtime-class", "devices", "private-registries", "upgrade",
         "troubleshooting", "sizing", "uninstall"]
REGISTRY = "registry.internal"

# The password of `node` is `secret-word`.
REGISTRY_CONFIG = b"""version: 0.1
storage:
  filesystem:
    rootdirectory: /root/registry
http:
  addr: 127.0.0.1:5000
  tls:
    certificate: /root/registry.crt
    key: /root/registry.key
auth:
  htpasswd:
    realm: node
    path: /root/registry.htpasswd
"""
REGISTRY_USERS = b"node:$2b$05$pOpIE8MvSWoj.3FgxhWj7ubb10pfbgijmYlv7MvfzNQlhfJ4EJc/m\n"


def blocks(name):
    """The blocks of commands of a guide that are marked `sh`."""
    with open(os.path.join(GUIDES, name + ".md")) as file:
        found = re.findall(r"^```sh\n(.*?)^```$", file.read(), re.M | re.S)
    assert found, f"{name} has no commands"
    return found


def check_order():
    """Every guide is run."""
    files = {file[:-3] for file in os.listdir(GUIDES)} - {"README"}
    assert files == set(ORDER), f"guides that are not in ORDER: {files ^ set(ORDER)}"


def registry_files(folder, store, manifest):
    """Files of a node that has a registry with a private certificate, and with one image, `busybox:1`, of an OCI store."""
    def openssl(*arguments):
        subprocess.run(["openssl", *arguments], check=True, cwd=folder, stderr=subprocess.DEVNULL)

    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "3650"]
    openssl("req", "-x509", *curve, "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=test authority")
    openssl("req", "-x509", *curve, "-keyout", "registry.key", "-out", "registry.crt", "-subj", f"/CN={REGISTRY}",
            "-addext", f"subjectAltName=DNS:{REGISTRY}", "-addext", "basicConstraints=CA:FALSE", "-CA", "ca.crt", "-CAkey", "ca.key")
    files = {f"/root/{name}": os.path.join(folder, name) for name in ["ca.crt", "registry.crt", "registry.key"]}
    return files | {
        "/root/registry.yml": REGISTRY_CONFIG,
        "/root/registry.htpasswd": REGISTRY_USERS,
        "/root/registry.tar": storage(store, manifest),
        "/usr/local/bin/docker-registry": "/usr/bin/docker-registry",
    }


def storage(store, manifest):
    """A tar archive of the folder in which docker-registry keeps the image."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        def add(path, content):
            info = tarfile.TarInfo("registry/docker/registry/v2/" + path)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))

        for digest in os.listdir(os.path.join(store, "blobs")):
            with open(os.path.join(store, "blobs", digest), "rb") as file:
                content = file.read()
            assert hashlib.sha256(content).hexdigest() == digest
            add(f"blobs/sha256/{digest[:2]}/{digest}/data", content)
            add(f"repositories/busybox/_layers/sha256/{digest}/link", f"sha256:{digest}".encode())
        link = manifest.encode()
        digest = manifest.removeprefix("sha256:")
        for path in [f"revisions/sha256/{digest}", "tags/1/current", f"tags/1/index/sha256/{digest}"]:
            add(f"repositories/busybox/_manifests/{path}/link", link)
    return data.getvalue()


def guides(node, step):
    check_order()
    node.run(f"echo 127.0.0.1 {REGISTRY} >>/etc/hosts; tar -C /root -xf /root/registry.tar")
    node.run("systemd-run --quiet --unit registry docker-registry serve /root/registry.yml")
    node.run("mkdir -p /root/work; mv /root/first.deb /root/work/berth_0_amd64.deb")
    for name in ORDER:
        step(f"docs/guides/{name}.md")
        if name == "from-containerd":
            node.run("systemctl unmask containerd; systemctl enable --now containerd")
            node.until("ctr version")
            node.run("ctr --namespace k8s.io images import /root/busybox-1.tar")
        if name == "install":
            # The guide before it has ended with containerd.
            node.run("systemctl disable --now containerd; dpkg --purge berth")
        if name == "upgrade":
            node.run("mv /root/second.deb /root/work/berth_0_amd64.deb")
            pods_that_run(node)
        for block in blocks(name):
            node.run(f"cd /root/work; export DEBIAN_FRONTEND=noninteractive\nset -e\n{block}")


def pods_that_run(node):
    """A pod that runs while berth is upgraded."""
    node.run("""cd /tmp
echo '{"metadata": {"name": "stays", "namespace": "default", "uid": "stays", "attempt": 0}}' >stays-pod.json
echo '{"metadata": {"name": "main", "attempt": 0}, "image": {"image": "node.test/busybox:1"}, "command": ["sleep", "1000000"]}' >stays.json
crictl start "$(crictl create "$(crictl runp stays-pod.json)" stays.json stays-pod.json)" """)
