"""Runs the commands of docs/guides on a virtual node, as written."""

import os
import re

import registry

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
GUIDES = os.path.join(ROOT, "docs/guides")
# In this order: each guide continues on the node of the one before it.
ORDER = ["from-containerd", "install", "air-gapped", "user-namespaces", "runtime-class", "devices", "private-registries", "upgrade",
         "troubleshooting", "sizing", "k3s", "uninstall"]


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


def guides(node, step):
    check_order()
    registry.start(node)
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
