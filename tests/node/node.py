"""A virtual Debian 13 node in qemu: boots it, runs commands in it, and cuts its power."""

import base64
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

from disk import Disk

HERE = os.path.dirname(os.path.abspath(__file__))
# An emulated machine beside other work boots slowly. A test fails by its result, not by its speed.
BOOT_SECONDS = 900
COMMAND_SECONDS = 600


class CommandFailed(Exception):
    """A command in the node ended with an error."""


class Node:
    """One machine with one disk. The disk outlives reboots and power cuts."""

    def __init__(self, folder, files, memory=3072, cpus=2, chance=None):
        """`files` maps paths in the node to files of this host, or to bytes. With `chance`, the disk has a volatile write cache, of
        which a power cut loses a random part; without, a power cut loses only what the node's kernel has not written."""
        self.folder = folder
        self.memory = memory
        self.cpus = cpus
        self.chance = chance
        self.cached_disk = None
        self.qemu = None
        self.port = None
        self.boots = 0
        os.makedirs(folder, exist_ok=True)
        self.image = subprocess.run(
            [os.path.join(HERE, "image.sh")], stdout=subprocess.PIPE, check=True, text=True
        ).stdout.strip()
        self._make_disk(files)

    def _make_disk(self, files):
        root = os.path.join(self.folder, "root")
        shutil.rmtree(root, ignore_errors=True)
        # Hard links: only added files take space.
        subprocess.run(["cp", "-al", os.path.join(self.image, "root"), root], check=True)
        for path, source in files.items():
            target = root + path
            os.makedirs(os.path.dirname(target), exist_ok=True)
            if os.path.lexists(target):
                os.unlink(target)
            if isinstance(source, bytes):
                with open(target, "wb") as file:
                    file.write(source)
            else:
                shutil.copy(source, target)
        self.disk = os.path.join(self.folder, "disk")
        with open(self.disk, "wb") as file:
            file.truncate(8 << 30)
        subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", "-d", root, self.disk], check=True)
        shutil.rmtree(root)

    def boot(self, append=""):
        """Starts the machine and waits until it accepts commands."""
        control = os.path.join(self.folder, "control")
        if os.path.exists(control):
            os.unlink(control)
        accelerate = ["-accel", "kvm", "-cpu", "host"] if os.environ.get("BERTH_VM_KVM") else ["-accel", "tcg,thread=multi", "-cpu", "max"]
        self.boots += 1
        self.console = os.path.join(self.folder, f"console-{self.boots}")
        self.qemu = subprocess.Popen(
            ["qemu-system-x86_64", *accelerate, "-smp", str(self.cpus), "-m", str(self.memory), "-display", "none", "-nic", "none",
             "-no-reboot", "-drive", f"file={self._drive()},if=virtio,format=raw,cache=writeback",
             "-kernel", os.path.join(self.image, "vmlinuz"), "-initrd", os.path.join(self.image, "initramfs"),
             "-append", f"console=ttyS0 quiet panic=-1 mitigations=off watchdog_thresh=60 systemd.show_status=0 "
             f"systemd.default_timeout_start_sec={BOOT_SECONDS} {append}",
             "-serial", f"file:{self.console}", "-serial", f"unix:{control},server=on,wait=off"],
            stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + BOOT_SECONDS
        while not os.path.exists(control):
            self._alive()
            time.sleep(0.1)
        self.port = socket.socket(socket.AF_UNIX)
        self.port.connect(control)
        self.buffer = b""
        while b"node-agent ready" not in self._line(deadline):
            pass

    def _drive(self):
        if self.chance is None:
            return self.disk
        socket_path = os.path.join(self.folder, f"disk-{self.boots}")
        self.cached_disk = Disk(self.disk, socket_path, self.chance)
        return "nbd+unix:///?socket=" + socket_path

    def _alive(self):
        if self.qemu.poll() is not None:
            with open(self.console, errors="replace") as file:
                sys.stderr.write(file.read()[-3000:])
            raise CommandFailed("the machine ended")

    def _line(self, deadline):
        while b"\n" not in self.buffer:
            left = deadline - time.monotonic()
            if left <= 0:
                raise CommandFailed("no answer from the machine in time")
            self.port.settimeout(min(left, 5))
            try:
                data = self.port.recv(65536)
            except TimeoutError:
                self._alive()
                continue
            if not data:
                self.qemu.wait(60)
                self._alive()
            self.buffer += data
        line, self.buffer = self.buffer.split(b"\n", 1)
        return line.strip()

    def send(self, command):
        """Sends a command without waiting for its result."""
        self.port.sendall(base64.b64encode(command.encode()) + b"\n")

    def answer(self, seconds=COMMAND_SECONDS):
        """The exit code and the output of the next command that ends."""
        deadline = time.monotonic() + seconds
        while True:
            words = self._line(deadline).split()
            if words[:1] == [b"answer"]:
                output = b"" if words[2] == b"-" else base64.b64decode(words[2])
                return int(words[1]), output.decode(errors="replace").rstrip("\n")

    def run(self, command, check=True, seconds=COMMAND_SECONDS):
        """Runs a command of bash in the node and returns its output."""
        self.send(command)
        code, output = self.answer(seconds)
        if check and code != 0:
            raise CommandFailed(f"{command!r} ended with {code}:\n{output}")
        return output if check else (code, output)

    def until(self, command, seconds=COMMAND_SECONDS):
        """Repeats a command until it succeeds."""
        deadline = time.monotonic() + seconds
        while True:
            code, output = self.run(command, check=False)
            if code == 0:
                return output
            if time.monotonic() > deadline:
                raise CommandFailed(f"{command!r} did not succeed in {seconds} s; last: {code}\n{output}")
            time.sleep(1)

    def wait_off(self, seconds=COMMAND_SECONDS):
        """Waits until the machine is off, after poweroff or reboot."""
        self.qemu.wait(seconds)
        self.port.close()
        if self.cached_disk is not None:
            self.cached_disk.close()

    def cut_power(self):
        """Ends the machine at once. Data that it had not written to its disk is lost. Returns the number of lost blocks of the disk's
        cache, and of all blocks in it."""
        self.qemu.send_signal(signal.SIGKILL)
        self.qemu.wait()
        self.port.close()
        return self.cached_disk.cut() if self.cached_disk is not None else (0, 0)

    def close(self):
        if self.qemu is not None and self.qemu.poll() is None:
            self.cut_power()
        shutil.rmtree(self.folder, ignore_errors=True)
