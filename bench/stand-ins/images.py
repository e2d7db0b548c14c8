#!/usr/bin/env python3
"""Builds the images of a benchmark without docker, into a folder that registry.py serves.

usage: images.py FOLDER PAUSE

busybox:1     Debian's busybox with its libraries
pause:1       the program PAUSE, for runtimes whose pause is an image
layers-gzip:1 200 MB in seven layers of files, gzip
layers-zstd:1 the same with zstd (made when the zstd program is there)

The same content comes out every time, so that figures of different days compare.
"""

import gzip
import hashlib
import io
import json
import os
import random
import shutil
import subprocess
import sys
import tarfile

OCI = "application/vnd.oci.image"
LAYERS = 7
BYTES = 200 << 20
ARCH = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)


class Store:
    """Blobs by digest, and which manifest has which name."""

    def __init__(self, folder):
        self.folder = folder
        self.names = {}
        os.makedirs(os.path.join(folder, "blobs"), exist_ok=True)

    def put(self, data, media_type):
        digest = hashlib.sha256(data).hexdigest()
        with open(os.path.join(self.folder, "blobs", digest), "wb") as file:
            file.write(data)
        return {"mediaType": media_type, "digest": "sha256:" + digest, "size": len(data)}

    def image(self, name, tars, config, compression="gzip"):
        compress = {"gzip": gzip_of, "zstd": zstd_of}[compression]
        layers = [self.put(compress(tar), f"{OCI}.layer.v1.tar+{compression}") for tar in tars]
        diff_ids = ["sha256:" + hashlib.sha256(tar).hexdigest() for tar in tars]
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
    def __init__(self):
        self.data = io.BytesIO()
        self.tar = tarfile.open(fileobj=self.data, mode="w", format=tarfile.PAX_FORMAT)

    def folder(self, name, mode=0o755):
        info = tarfile.TarInfo(name)
        info.type, info.mode = tarfile.DIRTYPE, mode
        self.tar.addfile(info)

    def file(self, name, data, mode=0o644):
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(data), mode
        self.tar.addfile(info, io.BytesIO(data))

    def link(self, name, target):
        info = tarfile.TarInfo(name)
        info.type, info.linkname, info.mode = tarfile.LNKTYPE, target, 0o755
        self.tar.addfile(info)

    def bytes(self):
        self.tar.close()
        return self.data.getvalue()


def read(path):
    with open(path, "rb") as file:
        return file.read()


def libraries(program):
    """What the dynamic linker loads for it; nothing for a static program."""
    listed = subprocess.run(["ldd", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
    words = [word for line in listed.splitlines() for word in line.split()]
    return sorted({word for word in words if word.startswith("/")})


def busybox():
    program = shutil.which("busybox")
    if not program:
        sys.exit("images.py: no busybox here (apt-get install busybox)")
    tar = Tar()
    for folder in ["bin", "etc", "root", "tmp", "var"]:
        tar.folder(folder, 0o1777 if folder == "tmp" else 0o755)
    tar.file("bin/busybox", read(program), 0o755)
    for applet in ["cat", "echo", "env", "false", "ls", "ps", "sh", "sleep", "true", "yes"]:
        tar.link("bin/" + applet, "bin/busybox")
    for library in libraries(program):
        tar.file(library.lstrip("/"), read(library), 0o755)
    tar.file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n")
    tar.file("etc/group", b"root:x:0:\n")
    return tar.bytes()


def files(layer):
    """One layer: files of many sizes, as compressible as programs and text are."""
    chance = random.Random(layer)
    pool = bytes(chance.getrandbits(8) for _ in range(1 << 13))
    tar = Tar()
    tar.folder(f"layer{layer}")
    left, number = BYTES // LAYERS, 0
    while left > 0:
        size = min(left, chance.choice([200, 2_000, 8_000, 30_000, 100_000, 1_000_000]))
        data = bytearray()
        while len(data) < size:
            start = chance.randrange(len(pool) - 256)
            # Near a third is new, the rest has been there, within gzip's window: a third or so is left of it.
            if chance.random() < 0.6:
                data += chance.randbytes(48)
            data += pool[start : start + chance.randrange(16, 128)]
        if number % 100 == 0:
            tar.folder(f"layer{layer}/{number // 100}")
        tar.file(f"layer{layer}/{number // 100}/{number}", bytes(data[:size]))
        left, number = left - size, number + 1
    return tar.bytes()


def main():
    folder, pause = sys.argv[1:]
    store = Store(folder)
    store.image("busybox:1", [busybox()], {"Cmd": ["sh"], "Env": ["PATH=/bin"]})
    tar = Tar()
    tar.file("pause", read(pause), 0o755)
    store.image("pause:1", [tar.bytes()], {"Entrypoint": ["/pause"]})
    layers = [files(layer) for layer in range(LAYERS)]
    config = {"Cmd": ["none"]}
    store.image("layers-gzip:1", layers, config)
    if shutil.which("zstd"):
        store.image("layers-zstd:1", layers, config, "zstd")
    store.close()


main()
