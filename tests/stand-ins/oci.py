"""Builds OCI images without docker: the stand-ins for the tests and the benchmark."""

import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile

OCI = "application/vnd.oci.image"
ARCH = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)


class Store:
    """Blobs by digest and manifests by name. The same input gives the same content every time."""

    def __init__(self, folder):
        self.folder = folder
        self.names = {}
        self.layers = {}
        os.makedirs(os.path.join(folder, "blobs"), exist_ok=True)

    def put(self, data, media_type):
        digest = hashlib.sha256(data).hexdigest()
        with open(os.path.join(self.folder, "blobs", digest), "wb") as file:
            file.write(data)
        return {"mediaType": media_type, "digest": "sha256:" + digest, "size": len(data)}

    def layer(self, tar, diff_id, compression):
        """Puts a layer. One that several images have is compressed once."""
        key = diff_id, compression
        if key not in self.layers:
            compress = {"gzip": gzip_of, "zstd": zstd_of}[compression]
            self.layers[key] = self.put(compress(tar), f"{OCI}.layer.v1.tar+{compression}")
        return self.layers[key]

    def image(self, name, tars, config, compression="gzip"):
        diff_ids = ["sha256:" + hashlib.sha256(tar).hexdigest() for tar in tars]
        layers = [self.layer(tar, diff_id, compression) for tar, diff_id in zip(tars, diff_ids)]
        description = {
            "architecture": ARCH,
            "os": "linux",
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": f"{OCI}.manifest.v1+json",
            "config": self.put(json.dumps(description).encode(), f"{OCI}.config.v1+json"),
            "layers": layers,
        }
        self.names[name] = self.put(json.dumps(manifest).encode(), f"{OCI}.manifest.v1+json")

    def close(self):
        with open(os.path.join(self.folder, "names.json"), "w") as file:
            json.dump(self.names, file, indent=1)


def gzip_of(data):
    return gzip.compress(data, 6, mtime=0)


def zstd_of(data):
    return subprocess.run(["zstd", "-3", "-c", "-q"], input=data, stdout=subprocess.PIPE, check=True).stdout


class Tar:
    """A layer as a tar archive."""

    def __init__(self):
        self.data = io.BytesIO()
        self.tar = tarfile.open(fileobj=self.data, mode="w", format=tarfile.PAX_FORMAT)

    def folder(self, name, mode=0o755, owner=(0, 0)):
        info = tarfile.TarInfo(name)
        info.type, info.mode = tarfile.DIRTYPE, mode
        info.uid, info.gid = owner
        self.tar.addfile(info)

    def file(self, name, data, mode=0o644):
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(data), mode
        self.tar.addfile(info, io.BytesIO(data))

    def link(self, name, target):
        info = tarfile.TarInfo(name)
        info.type, info.linkname, info.mode = tarfile.LNKTYPE, target, 0o755
        self.tar.addfile(info)

    def symlink(self, name, target):
        info = tarfile.TarInfo(name)
        info.type, info.linkname, info.mode = tarfile.SYMTYPE, target, 0o777
        self.tar.addfile(info)

    def program(self, name, path, mode=0o755):
        """Adds a program of this machine with the libraries that it loads."""
        self.file(name, read(path), mode)
        for library in libraries(path):
            self.file(library.lstrip("/"), read(library), 0o755)

    def bytes(self):
        self.tar.close()
        return self.data.getvalue()


def read(path):
    with open(path, "rb") as file:
        return file.read()


def which(program, package):
    """Returns the path of a program of this machine."""
    path = shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if not path:
        sys.exit(f"{sys.argv[0]}: {program} not found (apt-get install {package})")
    return path


def libraries(program):
    """Returns the libraries that the dynamic linker loads for a program; none for a static program."""
    listed = subprocess.run(["ldd", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
    words = [word for line in listed.splitlines() for word in line.split()]
    return sorted({word for word in words if word.startswith("/")})
