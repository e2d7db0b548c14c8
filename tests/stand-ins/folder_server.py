#!/usr/bin/env python3
"""Mounts an empty folder whose filesystem is this program (FUSE), and answers until it is ended.

While the program is stopped (SIGSTOP), the mount hangs, as that of a network file server that does not answer.

usage: folder_server.py MOUNTPOINT
"""

import ctypes
import errno
import os
import struct
import sys

# Requests and answers are those of include/uapi/linux/fuse.h.
GETATTR, STATFS, FORGET, INIT, INTERRUPT, BATCH_FORGET = 3, 17, 2, 26, 36, 42
REQUEST = struct.Struct("<IIQQIIIHH")
ANSWER = struct.Struct("<IiQ")


def init(_request):
    """fuse_init_out of version 7.31."""
    return struct.pack("<IIIIHHIIHH32x", 7, 31, 65536, 0, 12, 10, 65536, 1, 0, 0)


def getattr_(_request):
    """fuse_attr_out: a folder, mode 0755. It is valid for no time, so each use asks again."""
    attr = struct.pack("<6Q10I", 1, 0, 0, 0, 0, 0, 0, 0, 0, 0o40755, 2, 0, 0, 0, 4096, 0)
    return struct.pack("<QII", 0, 0, 0) + attr


def statfs(_request):
    """fuse_statfs_out."""
    return struct.pack("<5Q4I24x", 100, 100, 100, 100, 100, 4096, 255, 4096, 0)


ANSWERS = {INIT: init, GETATTR: getattr_, STATFS: statfs}


def main():
    mountpoint = os.fsencode(sys.argv[1])
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"folder-server", mountpoint, b"fuse", 0, options) != 0:
        sys.exit(f"failed to mount {sys.argv[1]}: {os.strerror(ctypes.get_errno())}")
    while True:
        try:
            request = os.read(device, 1 << 20)
        except OSError as error:
            # ENODEV: unmounted.
            if error.errno == errno.ENODEV:
                return
            if error.errno in (errno.EINTR, errno.ENOENT, errno.EAGAIN):
                continue
            raise
        _length, kind, unique, *_rest = REQUEST.unpack_from(request)
        if kind in (FORGET, BATCH_FORGET, INTERRUPT):
            continue
        answer = ANSWERS.get(kind)
        data, code = (answer(request), 0) if answer else (b"", -errno.ENOSYS)
        os.write(device, ANSWER.pack(ANSWER.size + len(data), code, unique) + data)


main()
