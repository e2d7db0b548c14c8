"""A registry on a virtual node: docker-registry with a private certificate and a password, and without both on a loopback port."""

import hashlib
import io
import os
import subprocess
import tarfile

REGISTRY = "registry.internal"
# berth speaks plain HTTP with loopback addresses.
PLAIN = "127.0.0.1:5001"

# The password of `node` is `secret-word`.
CONFIG = b"""version: 0.1
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
PLAIN_CONFIG = f"""version: 0.1
storage:
  filesystem:
    rootdirectory: /root/registry
http:
  addr: {PLAIN}
""".encode()
USERS = b"node:$2b$05$pOpIE8MvSWoj.3FgxhWj7ubb10pfbgijmYlv7MvfzNQlhfJ4EJc/m\n"


class Images:
    """A tar archive of the folder in which docker-registry keeps images."""

    def __init__(self):
        self.data = io.BytesIO()
        self.archive = tarfile.open(fileobj=self.data, mode="w")
        self.blobs = set()

    def add(self, repository, tag, store, manifest):
        """Adds all blobs of an OCI store, and an image of it by the digest of its manifest."""
        for digest in os.listdir(os.path.join(store, "blobs")):
            with open(os.path.join(store, "blobs", digest), "rb") as file:
                content = file.read()
            assert hashlib.sha256(content).hexdigest() == digest
            if digest not in self.blobs:
                self.blobs.add(digest)
                self._file(f"blobs/sha256/{digest[:2]}/{digest}/data", content)
            self._file(f"repositories/{repository}/_layers/sha256/{digest}/link", f"sha256:{digest}".encode())
        digest = manifest.removeprefix("sha256:")
        for path in [f"revisions/sha256/{digest}", f"tags/{tag}/current", f"tags/{tag}/index/sha256/{digest}"]:
            self._file(f"repositories/{repository}/_manifests/{path}/link", manifest.encode())

    def _file(self, path, content):
        info = tarfile.TarInfo("registry/docker/registry/v2/" + path)
        info.size = len(content)
        self.archive.addfile(info, io.BytesIO(content))

    def tar(self):
        self.archive.close()
        return self.data.getvalue()


def files(folder, images):
    """Files of a node that has the registry with these images."""
    def openssl(*arguments):
        subprocess.run(["openssl", *arguments], check=True, cwd=folder, stderr=subprocess.DEVNULL)

    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "3650"]
    openssl("req", "-x509", *curve, "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=test authority")
    openssl("req", "-x509", *curve, "-keyout", "registry.key", "-out", "registry.crt", "-subj", f"/CN={REGISTRY}",
            "-addext", f"subjectAltName=DNS:{REGISTRY}", "-addext", "basicConstraints=CA:FALSE", "-CA", "ca.crt", "-CAkey", "ca.key")
    made = {f"/root/{name}": os.path.join(folder, name) for name in ["ca.crt", "registry.crt", "registry.key"]}
    return made | {
        "/root/registry.yml": CONFIG,
        "/root/registry-plain.yml": PLAIN_CONFIG,
        "/root/registry.htpasswd": USERS,
        "/root/registry.tar": images.tar(),
        "/usr/local/bin/docker-registry": "/usr/bin/docker-registry",
    }


def start(node):
    """Starts the registry with the certificate and the password."""
    node.run(f"grep -q {REGISTRY} /etc/hosts || echo 127.0.0.1 {REGISTRY} >>/etc/hosts; [ -d /root/registry ] || tar -C /root -xf /root/registry.tar")
    node.run("systemd-run --quiet --unit registry docker-registry serve /root/registry.yml")


def start_plain(node):
    """Starts the registry on the loopback port, and waits until it answers."""
    node.run("[ -d /root/registry ] || tar -C /root -xf /root/registry.tar")
    node.run("systemctl is-active --quiet registry-plain || systemd-run --quiet --unit registry-plain docker-registry serve /root/registry-plain.yml")
    node.until(f"curl -sSf http://{PLAIN}/v2/ >/dev/null")
