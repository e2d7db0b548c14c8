#!/usr/bin/env python3
"""Builds the images of a benchmark without docker, into a folder that registry.py serves.

usage: images.py FOLDER PAUSE

busybox:1     Debian's busybox with its libraries
pause:1       the program PAUSE, for runtimes whose pause is an image
layers-gzip:1 200 MB in seven layers of files, gzip
layers-zstd:1 the same with zstd (made when the zstd program is there)
small-gzip:1  sixty layers of 500 small files each, gzip
many-layers:1 127 layers, the maximum of docker, of 300 files each in folders that only the first layer lists
one-layer:1   one layer of 600 MB, zstd or gzip
tenth-N:1     ten images of two layers of 8 MB each, gzip

The content is the same every time, so figures of different days are comparable.
"""

import os
import random
import shutil
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../tests/stand-ins"))
from oci import Store, Tar, read, which  # noqa: E402

LAYERS = 7
BYTES = 200 << 20


def busybox():
    tar = Tar()
    for folder in ["bin", "etc", "root", "tmp", "var"]:
        tar.folder(folder, 0o1777 if folder == "tmp" else 0o755)
    tar.program("bin/busybox", which("busybox", "busybox"))
    for applet in ["cat", "echo", "env", "false", "ls", "ps", "sh", "sleep", "true", "yes"]:
        tar.link("bin/" + applet, "bin/busybox")
    tar.file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n")
    tar.file("etc/group", b"root:x:0:\n")
    return tar.bytes()


def files(layer):
    """One layer: files of many sizes, as compressible as programs and text."""
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
            # About a third is new, the rest repeats data within gzip's window. The compressed size is about a third.
            if chance.random() < 0.6:
                data += chance.randbytes(48)
            data += pool[start : start + chance.randrange(16, 128)]
        if number % 100 == 0:
            tar.folder(f"layer{layer}/{number // 100}")
        tar.file(f"layer{layer}/{number // 100}/{number}", bytes(data[:size]))
        left, number = left - size, number + 1
    return tar.bytes()


def small(layer):
    """One of many layers: source files, a few kilobytes each."""
    chance = random.Random(1000 + layer)
    tar = Tar()
    tar.folder(f"part{layer}")
    for number in range(500):
        if number % 50 == 0:
            tar.folder(f"part{layer}/{number // 50}")
        text = chance.randbytes(chance.choice([100, 500, 1500])).hex()
        tar.file(f"part{layer}/{number // 50}/{number}.c", text.encode())
    return tar.bytes()


MANY = 127


def many(layer):
    """One of very many layers: small files in shared folders. Only the first layer lists the folders, with their modes."""
    chance = random.Random(2_000_000 + layer)
    tar = Tar()
    folders = ["srv"] + [f"srv/{part}" for part in range(10)]
    if layer == 0:
        for folder in folders:
            tar.folder(folder, 0o750)
    for number in range(300):
        tar.file(f"srv/{number % 10}/{layer}-{number}", chance.randbytes(chance.choice([50, 200, 800])).hex().encode())
    return tar.bytes()


def large(seed, megabytes):
    """One layer of a few large files, like models and databases. Half of it is incompressible."""
    chance = random.Random(seed)
    tar = Tar()
    for number in range(max(1, megabytes // 100)):
        size = min(megabytes, 100)
        tar.file(f"large{seed}-{number}", b"".join(chance.randbytes(1 << 19) + bytes(1 << 19) for _ in range(size)))
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
    store.image("small-gzip:1", [small(layer) for layer in range(60)], config)
    store.image("many-layers:1", [many(layer) for layer in range(MANY)], config)
    store.image("one-layer:1", [large(2000, 600)], config, "zstd" if shutil.which("zstd") else "gzip")
    for number in range(10):
        store.image(f"tenth-{number}:1", [large(3000 + 2 * number + part, 8) for part in range(2)], config)
    store.close()


main()
