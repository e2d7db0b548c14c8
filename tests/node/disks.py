"""berth on a small disk of a virtual node that becomes full: under load, and at the start of the daemon. A
read-only disk is in tests/it/survival/disks.rs."""

import json
import re

import registry

# The folders of berth and of the logs are on one disk.
DISK = """
modprobe loop
mkdir -p /small /var/lib/berth /var/log/pods
truncate -s 160M /root/small.img
mkfs.ext4 -q -m 0 /root/small.img
mount -o loop /root/small.img /small
mkdir -m 700 /small/berth && mkdir /small/logs
mount --bind /small/berth /var/lib/berth
mount --bind /small/logs /var/log/pods
"""
# The sync releases blocks that ext4 has reserved for delayed allocation (see tests/it/support/disk.rs).
FILL = "for size in 1M 4k 4k; do dd if=/dev/zero bs=$size of=/small/fill oflag=append conv=notrunc 2>/dev/null; sync -f /small; done; df /small | grep -q 100%"
FREE = "rm -f /small/fill && sync -f /small"
# Pulls, creations and writing of logs, until a file appears. The errors of crictl are kept.
LOAD = r"""
while [ ! -e /run/load-stop ]; do
    image=PLAIN/large-$((RANDOM % 10)):1
    crictl pull $image 2>>/run/load-pulls && crictl rmi $image 2>/dev/null
done >/dev/null &
number=0
while [ ! -e /run/load-stop ]; do
    number=$((number + 1))
    sed "s/NAME/load-$number/g" /root/NAME-pod.json >/run/load-pod.json
    sed "s/NAME/load-$number/g" /root/NAME-container.json >/run/load-container.json
    crictl run --no-pull /run/load-container.json /run/load-pod.json
done >/dev/null 2>>/run/load-pods &
wait
"""
FULL_CODE, FULL_TEXT = "ResourceExhausted", "No space left on device"


class Small:
    """The node with the small disk."""

    def __init__(self, node, pods, clean, step):
        self.node, self.pods, self.clean, self.step = node, pods, clean, step
        self.goes = 0

    def refused(self, command, *texts):
        """A call fails with an error that has these texts."""
        code, output = self.node.run(command, check=False)
        assert code != 0, f"{command!r} worked:\n{output}"
        for text in texts:
            assert text.lower() in output.lower(), f"{command!r} has no {text!r}:\n{output}"

    def fill(self):
        # Files of removed objects are deleted in the background.
        self.node.until("[ -z \"$(find /var/lib/berth -path '*/trash/*' -print -quit)\" ]")
        self.node.run(FILL)

    def refuses_new_objects(self, *texts):
        self.refused("crictl runp /root/refused-pod.json", *texts)
        self.refused(f"crictl create {self.stays[0]} /root/refused-container.json /root/refused-pod.json", *texts)
        self.refused(f"crictl pull {registry.PLAIN}/large-9:1", *texts)

    def runs(self):
        """The pods that were there before run, and commands can be executed in them."""
        for _, container in (self.stays, self.writes):
            assert self.pods.state(container) == "CONTAINER_RUNNING", f"{container} ended"
            assert self.node.run(f"crictl exec {container} echo alive") == "alive"
        assert self.pods.inspect(self.stays[1])["info"]["pid"] == self.pid, "the container restarted"

    def stops_and_removes(self, pod, container):
        """An exit is seen, and a pod can be stopped and removed."""
        node = self.node
        node.run(f"crictl stop {container}")
        assert self.pods.state(container) == "CONTAINER_EXITED"
        node.run(f"crictl rm {container} && crictl stopp {pod} && crictl rmp {pod}", seconds=120)
        assert pod not in node.run("crictl pods -q --no-trunc").split()

    def pod_that_goes(self):
        self.goes += 1
        return self.pods.run(f"goes-{self.goes}", "trap 'exit 0' TERM; while true; do sleep 0.2; done")

    def works(self):
        """Without a restart, pods and images can be made, and nothing is left over."""
        node = self.node
        pod, container = self.pod_that_goes()
        node.until(f"crictl exec {container} true", seconds=60)
        self.stops_and_removes(pod, container)
        node.run(f"crictl pull {registry.PLAIN}/large-8:1 && crictl rmi {registry.PLAIN}/large-8:1")
        # Files that could not be removed are removed later, at least once a minute.
        node.until("berth fsck", seconds=150)
        self.clean(node)

    def checked(self, what):
        """`berth check` reports the disk."""
        _, report = self.node.run("berth check --json", check=False)
        rows = {row["what"]: row for row in json.loads(report)["rows"]}
        assert what in rows and rows[what]["found"] == "no", f"berth check has no finding {what!r}: {report}"


def disks(node, pods, install, clean, step):
    node.run(DISK)
    install(node)
    registry.start_plain(node)
    small = Small(node, pods, clean, step)
    small.stays = pods.run("stays", "sleep 100000")
    small.writes = pods.run("writes", "i=0; while true; do echo count $i; i=$((i+1)); sleep 0.02; done")
    small.pid = pods.inspect(small.stays[1])["info"]["pid"]
    # The configuration files of the calls that are refused.
    refused = pods.run("refused", "sleep 100000")
    node.run(f"crictl rmp -f {refused[0]}")
    template = pods.run("NAME", "i=0; while [ $i -lt 3000 ]; do echo count $i; i=$((i+1)); done; sleep 100000")
    node.run(f"crictl rmp -f {template[0]}; cat >/root/load.sh <<'END'\n{LOAD.replace('PLAIN', registry.PLAIN)}\nEND")

    fills_under_load(small)
    full(small)


def fills_under_load(small):
    node = small.node
    small.step("the disk becomes full during pulls, creations and writing of logs: errors name it, running pods continue")
    node.run("systemd-run --quiet --unit load bash /root/load.sh; sleep 10")
    # Removed images make room again.
    node.until(f"{{ {FILL}; grep -q 'No space left' /run/load-pulls && grep -q 'No space left' /run/load-pods; }}")
    node.run("touch /run/load-stop; while systemctl is-active --quiet load; do sleep 0.5; done")
    for file in ["/run/load-pulls", "/run/load-pods"]:
        for error in re.findall(r"code = (\w+) desc = (.*)", node.run(f"cat {file}")):
            assert error[0] == FULL_CODE and FULL_TEXT.lower() in error[1].lower(), f"{file}: {error}"
    small.runs()
    loaded = node.run("crictl pods -q --no-trunc --name load").split()
    assert loaded, "the load has made no pod"
    node.run(f"crictl rmp -f {' '.join(loaded)}")
    node.run(FREE)
    small.works()


def full(small):
    node, pods = small.node, small.pods
    small.step("a full disk: calls are refused, pods run, stop and are removed; berth check reports it")
    first, second = small.pod_that_goes(), small.pod_that_goes()
    node.run(f"crictl rmi {registry.PLAIN}/large-9:1", check=False)
    small.fill()
    small.refuses_new_objects(FULL_CODE, FULL_TEXT)
    small.runs()
    small.stops_and_removes(*first)
    small.checked("space of /var/lib/berth")

    small.step("the daemon starts on a full disk")
    small.fill()
    node.run("systemctl restart berth")
    node.until("crictl info >/dev/null", seconds=120)
    small.runs()
    small.refuses_new_objects(FULL_CODE, FULL_TEXT)
    small.stops_and_removes(*second)

    small.step("with space again, everything works without a restart, and the log has the number of lost lines")
    node.run(FREE)
    small.works()
    small.runs()
    node.until("grep -q 'berth: [0-9]* log records could not be written' /var/log/pods/default_writes_uid/0.log*")
