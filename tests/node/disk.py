#!/usr/bin/env python3
"""A disk with a volatile write cache, for a virtual node: an NBD server on a unix socket.

A write is answered when it is in the cache, as by a real disk. It is on the medium after a flush (the NBD protocol,
"NBD_CMD_FLUSH", and the kernel's Documentation/block/writeback_cache_control.rst). When the power is cut, each block that is only in
the cache is lost or not, by chance: so writes are reordered, and large writes are torn.

  tests/node/disk.py --self-test
"""

import os
import random
import socket
import struct
import sys
import tempfile
import threading

# The unit that a disk writes as a whole.
BLOCK = 4096
# A disk also writes blocks when its cache is full.
CACHE_BLOCKS = (64 << 20) // BLOCK

NBD_MAGIC = b"NBDMAGIC"
OPTION_MAGIC = b"IHAVEOPT"
FIXED_NEWSTYLE, NO_ZEROES = 1, 2
OPT_EXPORT_NAME, OPT_ABORT, OPT_GO = 1, 2, 7
REPLY_MAGIC = 0x3E889045565A9
REP_ACK, REP_INFO, REP_ERR_UNSUP = 1, 3, (1 << 31) + 1
HAS_FLAGS, SEND_FLUSH = 1, 4
REQUEST_MAGIC, SIMPLE_REPLY_MAGIC = 0x25609513, 0x67446698
CMD_READ, CMD_WRITE, CMD_DISC, CMD_FLUSH = range(4)
EINVAL = 22


class Medium:
    """A file, with a cache of the blocks that were written to it and not flushed."""

    def __init__(self, path, chance):
        self.file = os.open(path, os.O_RDWR)
        self.size = os.fstat(self.file).st_size
        self.chance = chance
        self.cache = {}

    def read(self, offset, length):
        data = bytearray(os.pread(self.file, length, offset))
        for block in range(offset // BLOCK, (offset + length + BLOCK - 1) // BLOCK):
            if (cached := self.cache.get(block)) is not None:
                start = block * BLOCK - offset
                first, last = max(start, 0), min(start + BLOCK, length)
                data[first:last] = cached[first - start : last - start]
        return data

    def write(self, offset, data):
        position = 0
        while position < len(data):
            block, inside = divmod(offset + position, BLOCK)
            part = data[position : position + BLOCK - inside]
            if len(part) < BLOCK:
                whole = self.read(block * BLOCK, BLOCK)
                whole[inside : inside + len(part)] = part
                part = whole
                position += min(BLOCK - inside, len(data) - position)
            else:
                position += BLOCK
            if block in self.cache and self.chance.random() < 0.5:
                # The older content may have reached the medium before the newer one was written.
                self._store(block)
            self.cache[block] = bytes(part)
        if len(self.cache) > CACHE_BLOCKS:
            for block in self.chance.sample(list(self.cache), CACHE_BLOCKS // 2):
                self._store(block)
                del self.cache[block]

    def flush(self):
        for block in self.cache:
            self._store(block)
        self.cache.clear()

    def cut(self):
        """Loses what is not on the medium: returns the number of lost blocks and of blocks that were in the cache."""
        # Sometimes all is lost, and sometimes very little.
        kept = self.chance.choice([0.0, 0.5, self.chance.random()])
        lost = 0
        for block in self.cache:
            if self.chance.random() < kept:
                self._store(block)
            else:
                lost += 1
        held = len(self.cache)
        self.cache.clear()
        return lost, held

    def close(self):
        os.close(self.file)

    def _store(self, block):
        os.pwrite(self.file, self.cache[block][: self.size - block * BLOCK], block * BLOCK)


class Closed(Exception):
    """The client has closed the connection."""


class Disk:
    """Serves a medium to one client at a time, in a thread."""

    def __init__(self, path, socket_path, chance):
        self.medium = Medium(path, chance)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(socket_path)
        self.listener.listen(1)
        self.wanted = None
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def stop_before_flush(self, blocks, seconds):
        """Waits for a flush of at least so many blocks, and does not execute it. At this moment a power cut loses most. Returns false
        if there is none in this time."""
        self.wanted = blocks
        return self.stopped.wait(seconds)

    def cut(self):
        """The power is cut. The client is dead."""
        self._stop()
        result = self.medium.cut()
        self.medium.close()
        return result

    def close(self):
        """The client has ended regularly."""
        self._stop()
        self.medium.flush()
        self.medium.close()

    def _stop(self):
        # The end of the connection ends the thread; this wakes it if no client has connected.
        self.listener.shutdown(socket.SHUT_RDWR)
        self.thread.join()
        self.listener.close()

    def _serve(self):
        try:
            self.client, _ = self.listener.accept()
        except OSError:
            return
        with self.client:
            try:
                if self._negotiate():
                    while self._request():
                        pass
            except (Closed, ConnectionError):
                pass

    def _receive(self, length):
        data = bytearray(length)
        view, done = memoryview(data), 0
        while done < length:
            count = self.client.recv_into(view[done:])
            if count == 0:
                raise Closed
            done += count
        return data

    def _negotiate(self):
        flags = HAS_FLAGS | SEND_FLUSH
        self.client.sendall(NBD_MAGIC + OPTION_MAGIC + struct.pack(">H", FIXED_NEWSTYLE | NO_ZEROES))
        (client_flags,) = struct.unpack(">I", self._receive(4))
        while True:
            magic, option, length = struct.unpack(">8sII", self._receive(16))
            self._receive(length)
            assert magic == OPTION_MAGIC, "not an NBD client"
            if option == OPT_EXPORT_NAME:
                padding = b"" if client_flags & NO_ZEROES else bytes(124)
                self.client.sendall(struct.pack(">QH", self.medium.size, flags) + padding)
                return True
            if option == OPT_GO:
                # NBD_INFO_EXPORT
                self._reply_option(option, REP_INFO, struct.pack(">HQH", 0, self.medium.size, flags))
                self._reply_option(option, REP_ACK)
                return True
            self._reply_option(option, REP_ACK if option == OPT_ABORT else REP_ERR_UNSUP)
            if option == OPT_ABORT:
                return False

    def _reply_option(self, option, reply, data=b""):
        self.client.sendall(struct.pack(">QIII", REPLY_MAGIC, option, reply, len(data)) + data)

    def _request(self):
        magic, _, command, cookie, offset, length = struct.unpack(">IHHQQI", self._receive(28))
        assert magic == REQUEST_MAGIC, "not a request of NBD"
        error, answer = 0, b""
        if command == CMD_READ:
            answer = self.medium.read(offset, length)
        elif command == CMD_WRITE:
            self.medium.write(offset, self._receive(length))
        elif command == CMD_FLUSH:
            if self.wanted is not None and len(self.medium.cache) >= self.wanted:
                self.stopped.set()
                # Until the client is dead.
                while self.client.recv(1 << 16):
                    pass
                return False
            self.medium.flush()
        elif command == CMD_DISC:
            return False
        else:
            error = EINVAL
        self.client.sendall(struct.pack(">IIQ", SIMPLE_REPLY_MAGIC, error, cookie) + answer)
        return True


def self_test():
    chance = random.Random(1)
    outcomes = set()
    for _ in range(60):
        with tempfile.NamedTemporaryFile() as file:
            file.truncate(64 * BLOCK)
            medium = Medium(file.name, chance)
            medium.write(0, b"a" * 8 * BLOCK)
            medium.write(1000, b"b" * 512)
            medium.flush()
            expected = b"a" * 1000 + b"b" * 512 + b"a" * (8 * BLOCK - 1512)
            assert medium.read(0, 8 * BLOCK) == expected
            medium.write(4 * BLOCK, b"c" * 8 * BLOCK)
            assert medium.read(4 * BLOCK - 1, BLOCK) == b"a" + b"c" * (BLOCK - 1)
            lost, held = medium.cut()
            assert held == 8
            # Flushed blocks are there; of the others, each is old or new as a whole.
            assert medium.read(0, 4 * BLOCK) == expected[: 4 * BLOCK]
            after = [bytes(medium.read(block * BLOCK, BLOCK)) for block in range(4, 12)]
            assert all(block in (old * BLOCK, b"c" * BLOCK) for block, old in zip(after, [b"a"] * 4 + [b"\0"] * 4)), after
            assert sum(block != b"c" * BLOCK for block in after) == lost
            outcomes.add(lost)
            medium.close()
    assert {0, 8} <= outcomes and len(outcomes) > 4, outcomes
    print("ok")


if __name__ == "__main__":
    if sys.argv[1:] != ["--self-test"]:
        sys.exit(__doc__)
    self_test()
