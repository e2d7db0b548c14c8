"""Cuts the power of a virtual node under load, and examines what the next boot finds."""

import collections
import json
import os
import random
import re
import time

import registry

IMAGE = "node.test/busybox:1"
# The longest time of the load before a cut.
LOAD_SECONDS = 300
CUTS = int(os.environ.get("BERTH_POWER_CUTS", "3"))
SEED = os.environ.get("BERTH_POWER_SEED") or str(random.randrange(1 << 32))
MOMENTS = random.Random(SEED)
BLOCKS = random.Random(SEED + " blocks")

RUN_PODS = """for name in "$@"; do
    sed "s/NAME/$name/g" /root/load-pod.json >$name-pod.json
    sed "s/NAME/$name/g" /root/load-container.json >$name.json
    crictl run --no-pull $name.json $name-pod.json
done"""

# Pulls, loads, starts, removals and writing of logs, until the power is cut. Each finished operation is a line on the console.
LOAD = r"""
done_with() { echo "load: $1 $?" >/dev/ttyS0; }
images() {
    while true; do
        image=large-$((RANDOM % 10))
        case $1 in
        pull) crictl pull REGISTRY/$image:1 ;;
        load) berth image load /root/$image-1.tar ;;
        esac
        done_with $1
        image=large-$((RANDOM % 10))
        [ $((RANDOM % 2)) = 0 ] || crictl rmi REGISTRY/$image:1
        [ $((RANDOM % 2)) = 0 ] || crictl rmi node.test/$image:1
    done
}
pods() {
    while true; do
        name=load-$1-$RANDOM
        sed "s/NAME/$name/g" /root/load-pod.json >/tmp/$name-pod.json
        sed "s/NAME/$name/g" /root/load-container.json >/tmp/$name-container.json
        crictl run --no-pull /tmp/$name-container.json /tmp/$name-pod.json
        done_with start
        [ $((RANDOM % 3)) = 0 ] && continue
        crictl rmp -f $(crictl pods -q --name $name)
        done_with remove
    done
}
images pull & images load & pods a & pods b &
""".replace("REGISTRY", registry.PLAIN)


def power(node, pods, sums, install, clean, step):
    """`sums` are the checksums of the files in each folder of the large images."""
    step(f"seed {SEED}")
    install(node)
    registry.start_plain(node)
    pods.run("NAME", "i=0; while true; do echo count $i; i=$((i+1)); [ $((i % 100)) != 0 ] || sleep 0.2; done")
    pods.remove_all()
    node.run("mv /root/NAME-pod.json /root/load-pod.json; mv /root/NAME-container.json /root/load-container.json")
    cuts(node, sums, clean, step)


def cuts(node, sums, clean, step):
    node.run(f"cat >/root/load.sh <<'END'\n{LOAD}\nEND\nsync")
    lost_of_all = held_of_all = 0
    done_of_all = collections.Counter()
    for cut in range(CUTS):
        done = load_until_cut(node, cut)
        done_of_all.update(done)
        lost, held = node.cut_power()
        lost_of_all += lost
        held_of_all += held
        step(f"power cut {cut + 1} of {CUTS}, during load: {dict(done)} done; the disk lost {lost} of {held} blocks in its cache")
        started = time.monotonic()
        node.boot()
        node.until("crictl info >/dev/null")
        booted = time.monotonic()
        old_pods = examine(node, clean, cut, sums)
        step(f"    ready after {booted - started:.0f} s, with {old_pods} old pods; examined in {time.monotonic() - booted:.0f} s")
    step(f"{CUTS} power cuts; the load has done {dict(done_of_all)}; the disk lost {lost_of_all} of {held_of_all} blocks")
    assert held_of_all > 0, "the disk's cache was never in use"
    assert done_of_all["pull 0"] and done_of_all["start 0"], f"the load did not work: {done_of_all}"


def load_until_cut(node, cut):
    """Starts the load, and returns at a random moment what it has done: the numbers of each operation with its exit code."""
    registry.start_plain(node)
    node.run("setsid bash /root/load.sh >/dev/null 2>&1 </dev/null &")
    # An emulated machine has no constant speed: operations are counted, not seconds.
    operations, deadline = MOMENTS.randrange(1, 30), time.monotonic() + LOAD_SECONDS
    while (done := finished_operations(node)).total() < operations and time.monotonic() < deadline:
        time.sleep(0.2)
    # Every second cut is at any moment, the others when the node waits until blocks are on the medium.
    if cut % 2 == 0:
        node.cached_disk.stop_before_flush(MOMENTS.choice([1, 16, 128]), 10)
    else:
        time.sleep(MOMENTS.uniform(0, 3))
    return done


def finished_operations(node):
    with open(node.console, errors="replace") as file:
        return collections.Counter(re.findall(r"^load: (\w+ \d+)\r?$", file.read(), re.M))


def examine(node, clean, cut, sums):
    """The store is consistent, addresses are unique, and pods and images can be made at once. Returns the number
    of pods of the last boot that are listed."""
    node.run("systemctl is-active berth && berth image verify")
    layers_have_their_content(node, sums)
    # The image was on the disk before the load started.
    node.run(f"crictl inspecti {IMAGE} >/dev/null")
    old = json.loads(node.run("crictl pods -o json"))["items"]
    assert all(entry["state"] == "SANDBOX_NOTREADY" for entry in old), "a pod of the last boot is ready"
    node.run(f"cd /tmp && set -e -- after-{cut}-0 after-{cut}-1 after-{cut}-2; {RUN_PODS}")
    addresses = re.findall(r'"ip": "([^"]+)"', node.run(f"crictl inspectp $(crictl pods -q --name after-{cut}-)"))
    assert len(set(addresses)) == 3, f"addresses: {addresses}"
    pulled = f"{registry.PLAIN}/large-{cut % 10}:1"
    registry.start_plain(node)
    node.run(f"crictl pull {pulled} && crictl rmp -a -f >/dev/null")
    clean(node)
    # Logs of the removed pods; the kubelet removes them on a real node.
    node.run("rm -rf /var/log/pods/*")
    return len(old)


def layers_have_their_content(node, sums):
    """Every image that is listed has a layer with the right files. berth's own check is not trusted here."""
    listed = set(re.findall(r"large-(\d):1", node.run("crictl images -o json")))
    for number in sorted(listed):
        name = f"data-{number}"
        folders = node.run(f"find /var/lib/berth -type d -path '*/layers/*/fs/{name}'").split()
        assert folders, f"the image large-{number} has no layer"
        for folder in folders:
            found = set(node.run(f"cd {folder} && sha256sum *").splitlines())
            assert found == sums[name], f"wrong files in {folder}: {found ^ sums[name]}"
