#!/usr/bin/env python3
"""Builds stand-ins for the images of Kubernetes' e2e tests, and pushes them.

usage: e2e_images.py URL FOLDER PROGRAMS BUSYBOX

URL is a registry, FOLDER is for temporary files, PROGRAMS has the Go programs (tools.sh), BUSYBOX is the program that
tests/stand-ins/busybox.sh builds. The names are those of `e2e.test --list-images` without the registry's host: mirrors lead there.

Every tag is a separate image. The kubelet reports one name of an image, and tests compare it with the name of the pod.
"""

import hashlib
import json
import os
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "../stand-ins"))
sys.path.insert(0, os.path.join(HERE, "../conformance"))
from images import E2E, GROUP, NGINX, PASSWD, PATH, compiled, push  # noqa: E402
from oci import ARCH, OCI, Store, Tar, gzip_of, read, which  # noqa: E402

FOLDERS = ["bin", "dev", "etc", "home", "mnt", "opt", "proc", "root", "run", "sbin", "sys", "usr", "usr/bin", "usr/sbin", "usr/local",
           "usr/local/bin", "var", "var/lib", "var/log", "var/www"]
AGNHOST_PASSWD = PASSWD + "user-defined-in-image:x:1000:1000::/home/user-defined-in-image:/bin/sh\n"
AGNHOST_GROUP = GROUP + "user-defined-in-image:x:1000:\ngroup-defined-in-image:x:50000:user-defined-in-image\n"
# Debian's programs that the tests run in agnhost, with the package of each.
AGNHOST_PROGRAMS = {
    "bash": "bash", "curl": "curl", "dig": "bind9-dnsutils", "getent": "libc-bin", "ip": "iproute2", "iperf": "iperf",
    "ipcs": "util-linux", "nc": "netcat-openbsd", "ss": "iproute2",
}
# The kernel ignores signals to the first process of a PID namespace unless it has a handler.
PAUSE = r"""
#include <signal.h>
#include <unistd.h>
static void end(int number) { _exit(0); }
int main(void) { signal(SIGINT, end); signal(SIGTERM, end); for (;;) pause(); }
"""
FAKE_REGISTRY = "var/registry/pause"


def base(busybox):
    """A root filesystem of busybox."""
    tar = Tar()
    for folder in FOLDERS:
        tar.folder(folder)
    tar.folder("tmp", 0o1777)
    tar.symlink("var/run", "../run")
    tar.program("bin/busybox", busybox)
    applets = subprocess.run([busybox, "--list"], stdout=subprocess.PIPE, text=True, check=True).stdout.split()
    for applet in applets:
        if applet != "busybox":
            tar.link("bin/" + applet, "bin/busybox")
    tar.file("etc/passwd", PASSWD.encode())
    tar.file("etc/group", GROUP.encode())
    tar.file("etc/nsswitch.conf", b"hosts: files dns\n")
    return tar.bytes()


def certificate(folder):
    """A certificate for localhost and its key."""
    paths = [os.path.join(folder, name) for name in ("localhost.crt", "localhost.key")]
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "3650", "-subj", "/CN=localhost", "-addext",
         "subjectAltName=DNS:localhost,DNS:example.com,IP:127.0.0.1", "-out", paths[0], "-keyout", paths[1]],
        check=True, stderr=subprocess.DEVNULL)
    return [read(path) for path in paths]


def agnhost(programs, folder):
    tar = Tar()
    for name, package in AGNHOST_PROGRAMS.items():
        tar.program(("bin/" if name == "bash" else "usr/bin/") + name, which(name, package))
    tar.folder("uploads")
    tar.folder("home/user-defined-in-image", owner=(1000, 1000))
    tar.file("etc/passwd", AGNHOST_PASSWD.encode())
    tar.file("etc/group", AGNHOST_GROUP.encode())
    # A spec reads the name of the real image's distribution.
    tar.file("etc/os-release", b'NAME="Alpine Linux"\nPRETTY_NAME="stand-in for Alpine Linux"\n')
    for name, data in zip(("localhost.crt", "localhost.key"), certificate(folder)):
        tar.file(name, data)
    tar.file("agnhost", read(f"{programs}/agnhost"), 0o755)
    tar.symlink("agnhost-2", "agnhost")
    tar.file("coredns", read(f"{programs}/coredns"), 0o755)
    return tar.bytes()


def fake_registry(pause):
    """The folder of agnhost's fake-registry-server, with one index: `pause:testing`."""
    tar = Tar()

    def put(kind, data):
        digest = hashlib.sha256(data).hexdigest()
        tar.file(f"{FAKE_REGISTRY}/{kind}/sha256/{digest[:2]}/{digest}/data", data)
        return {"digest": "sha256:" + digest, "size": len(data)}

    layer = gzip_of(pause)
    config = {"architecture": ARCH, "os": "linux", "config": {"Entrypoint": ["/pause"]},
              "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(pause).hexdigest()]}}
    manifest = {
        "schemaVersion": 2, "mediaType": f"{OCI}.manifest.v1+json",
        "config": {"mediaType": f"{OCI}.config.v1+json", **put("blobs", json.dumps(config).encode())},
        "layers": [{"mediaType": f"{OCI}.layer.v1.tar+gzip", **put("blobs", layer)}],
    }
    entry = {"mediaType": f"{OCI}.manifest.v1+json", **put("manifests", json.dumps(manifest).encode()),
             "platform": {"architecture": ARCH, "os": "linux"}}
    index = {"schemaVersion": 2, "mediaType": f"{OCI}.index.v1+json", "manifests": [entry]}
    digest = put("manifests", json.dumps(index).encode())["digest"]
    tar.file(f"{FAKE_REGISTRY}/manifests/testing", (digest + "\n").encode())
    return tar.bytes()


def web_server():
    tar = Tar()
    tar.program("usr/sbin/nginx", which("nginx", "nginx-light"))
    for folder in ["etc/nginx", "var/log/nginx", "var/lib/nginx", "usr/share", "usr/share/nginx", "usr/share/nginx/html"]:
        tar.folder(folder)
    tar.file("etc/nginx/nginx.conf", NGINX.format(port=80).encode())
    tar.file("usr/share/nginx/html/index.html", b"<html><body>Welcome to nginx!</body></html>\n")
    return tar.bytes()


def files(**content):
    tar = Tar()
    for name, data in content.items():
        tar.file(name.replace("_", "."), data)
    return tar.bytes()


def one(path, program, mode=0o755):
    tar = Tar()
    tar.file(path, read(program), mode)
    return tar.bytes()


def build(store, folder, programs, busybox):
    root = base(busybox)

    def image(name, layers, config):
        tag = Tar()
        tag.file("etc/stand-in", name.encode())
        store.image(name, [*layers, tag.bytes()], {"Env": [PATH], **config})

    shell = {"Cmd": ["sh"]}
    pause = compiled(folder, "pause", PAUSE)
    for version in ["3.10.1", "3.10.2"]:
        image(f"pause:{version}", [one("pause", pause)], {"Entrypoint": ["/pause"]})
    agnhost_layers = [root, agnhost(programs, folder), fake_registry(one("pause", pause))]
    hosted = {"Entrypoint": ["/agnhost"], "Cmd": ["pause"]}
    for version in ["2.55", "2.66.1"]:
        image(f"{E2E}/agnhost:{version}", agnhost_layers, hosted)
    for name in ["kitten", "nautilus"]:
        picture = {f"{name}_jpg": name.encode(), "data_json": f'{{\n"image": "{name}.jpg"\n}}\n'.encode()}
        image(f"{E2E}/{name}:1.8", [*agnhost_layers[:2], files(**picture)], {"Entrypoint": ["/agnhost"], "Cmd": ["test-webserver"]})
    image(f"{E2E}/busybox:1.37.0-2", [root], shell)
    image(f"{E2E}/ipc-utils:1.4", [root], shell)
    image(f"{E2E}/glibc-dns-testing:2.1.1", agnhost_layers[:2], shell)
    image(f"{E2E}/nonroot:1.5", [root], {**shell, "User": "1234"})
    for version in ["1.27.0-2", "1.28.0-2"]:
        image(f"{E2E}/nginx:{version}", [root, web_server()], {"Cmd": ["/usr/sbin/nginx"]})
    image(f"{E2E}/nonewprivs:1.4", [root, one("usr/local/bin/nnp", f"{programs}/nonewprivs", 0o6755)], {"Cmd": ["nnp"]})
    name = "regression-issue-74839"
    image(f"{E2E}/{name}:1.5", [root, one(name, f"{programs}/{name}")], {"Entrypoint": [f"/{name}"]})
    image(f"{E2E}/sample-apiserver:1.29.2", [root, one("sample-apiserver", f"{programs}/sample-apiserver")], {"Entrypoint": ["/sample-apiserver"]})
    image("etcd:3.7.0-0", [root, one("usr/local/bin/etcd", f"{programs}/etcd")], shell)
    image("coredns/coredns:v1.14.6", [one("coredns", f"{programs}/coredns")], {"Entrypoint": ["/coredns"]})


def main():
    url, folder, programs, busybox = sys.argv[1:]
    store = Store(folder)
    build(store, folder, programs, busybox)
    for name, manifest in store.names.items():
        push(url, store, name, manifest)


if __name__ == "__main__":
    main()
