#!/usr/bin/env python3
"""Writes the initial fuzz corpus: one small sample of each input format."""
import gzip
import io
import json
import os
import re
import subprocess
import tarfile
import zlib

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "corpus")


def write(target, name, content):
    folder = os.path.join(HERE, target)
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, name), "wb") as file:
        file.write(content if isinstance(content, bytes) else content.encode())


def tar(members, form=tarfile.PAX_FORMAT):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for name, kind, extra in members:
            info = tarfile.TarInfo(name)
            info.type = kind
            data = b""
            if kind == tarfile.REGTYPE:
                data = extra.encode()
                info.size = len(data)
            elif kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
                info.linkname = extra
            elif kind in (tarfile.CHRTYPE, tarfile.BLKTYPE):
                info.devmajor, info.devminor = 1, 3
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


D, F, S, H, C, P = (tarfile.DIRTYPE, tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE)
plain = [("d/", D, ""), ("d/a", F, "text"), ("l", S, "d"), ("h", H, "d/a"), ("null", C, ""), ("fifo", P, "")]
write("layer", "plain", tar(plain))
write("layer", "gnu", tar(plain + [("n" * 150, F, "long"), ("s", S, "t" * 150)], tarfile.GNU_FORMAT))
write("layer", "pax", tar(plain + [("ä" * 80, F, "long")]))
write("layer", "whiteouts", tar([("d/.wh.a", F, ""), ("d/.wh..wh..opq", F, ""), (".wh.d", F, ""), ("d/b", F, "x")]))
write("layer", "escapes", tar([("l", S, "/"), ("l/x", F, "x"), ("../y", F, "y"), ("h", H, "../secret"), ("/abs", F, "z")]))
write("layer", "replaced", tar([("a", F, "one"), ("a", F, "two"), ("a", D, ""), ("a/b", S, ".."), ("a/b", F, "x")]))
write("layer", "gzip", gzip.compress(tar(plain), mtime=0))
for name, options in [("sparse-1.0", ["--format=posix", "--sparse-version=1.0"]), ("sparse-0.0", ["--format=posix", "--sparse-version=0.0"]), ("sparse-old", ["--format=gnu"])]:
    folder = subprocess.run(["mktemp", "-d"], check=True, capture_output=True, text=True).stdout.strip()
    with open(os.path.join(folder, "holes"), "wb") as holes:
        for place in range(4):
            holes.seek(place * 65536)
            holes.write(b"x" * 100)
    made = subprocess.run(["tar", "--sparse", "--mtime=@0", "--owner=0", "--group=0", *options, "-C", folder, "-cf", "-", "holes"], check=True, capture_output=True)
    write("layer", name, made.stdout)
    subprocess.run(["rm", "-r", folder], check=True)
write("layer", "zstd", subprocess.run(["zstd", "-q", "-c"], input=tar(plain), check=True, capture_output=True).stdout)

literal = b"\0" + (4).to_bytes(8, "little") + b"text"
content = b"\1" + (3).to_bytes(8, "little") + (6).to_bytes(8, "little") + b"recipe"
write("recipe", "both", subprocess.run(["zstd", "-q", "-c"], input=literal + content, check=True, capture_output=True).stdout)

digest = "sha256:" + "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
image = "application/vnd.oci.image."
layer = {"mediaType": image + "layer.v1.tar+gzip", "digest": digest, "size": 1, "annotations": {"org.opencontainers.image.title": "a/b"}}
config = {"mediaType": image + "config.v1+json", "digest": digest, "size": 2}
write("manifest", "image", json.dumps({"schemaVersion": 2, "mediaType": image + "manifest.v1+json", "config": config, "layers": [layer]}))
write("manifest", "artifact", json.dumps({"schemaVersion": 2, "artifactType": "x/y", "config": {**config, "mediaType": "application/vnd.oci.empty.v1+json"}, "layers": [layer]}))
write("manifest", "index", json.dumps({"schemaVersion": 2, "manifests": [{**config, "mediaType": image + "manifest.v1+json", "platform": {"os": "linux", "architecture": "arm", "variant": "v7"}}]}))
write("manifest", "schema1", json.dumps({"schemaVersion": 1, "fsLayers": [{"blobSum": digest}]}))
write("manifest", "config", json.dumps({"os": "linux", "architecture": "amd64", "config": {"Env": ["A=b"], "Volumes": {"/v": {}}}, "rootfs": {"type": "layers", "diff_ids": [digest]}}))

for number, name in enumerate(["busybox", "a.b:5000/c/d:e", "localhost/x@" + digest, "[::1]:5000/a:1", "docker.io/library/a_b-c.d:latest", "a@sha512:" + "0" * 128, "A/b", ":x"]):
    write("reference", str(number), name)

write("hosts", "mirrors", 'server = "https://r.example"\nca = "ca.pem"\n[host."http://m.example/p"]\ncapabilities = ["pull"]\noverride_path = true\n[host."http://m.example/p".header]\nx = ["y"]\n')
write("hosts", "keys", 'server = "r.example:5000"\nskip_verify = true\nclient = [["c.pem", "k.pem"], "both.pem"]\nca = ["a.pem", "b.pem"]\n[host]\n[host."[::1]:5000"]\nclient = "one.pem"\ncapabilities = ["resolve", "push"]\n[host."https://m.example/v2/x/"]\noverride_path = true\nskip_verify = false\n[host."https://m.example/v2/x/".header]\nauthorization = "Basic dTpw"\n')
write("hosts", "none", "")
write("registries_conf", "mirrors", 'unqualified-search-registries = ["r.example", "docker.io"]\nshort-name-mode = "permissive"\n[aliases]\n"app" = "r.example/x"\n[[registry]]\nprefix = "*.example"\nlocation = "i.example"\n[[registry.mirror]]\nlocation = "m.example"\npull-from-mirror = "digest-only"\n')
write("registries_conf", "names", '[[registry]]\nlocation = "r.example/team"\ninsecure = true\nmirror-by-digest-only = true\n[[registry.mirror]]\nlocation = "localhost:5000/copy"\ninsecure = true\n[[registry]]\nprefix = "r.example/team/app"\nlocation = "other.example"\nblocked = true\n')
write("registries_conf", "version1", '[registries.search]\nregistries = ["r.example"]\n[registries.insecure]\nregistries = []\n')
write("printable", "terminal", "\x1b]0;title\x07 \u202etxt.exe\u2066 \x9b2J\r\n\tend\0")
write("printable", "json", json.dumps({"a\u202e": ["\x1b\n", "\U000e0041", "\u00e4"]}, ensure_ascii=False))
write("node_files", "policy.json", json.dumps({"default": [{"type": "reject"}], "transports": {"docker": {"r.example": [{"type": "sigstoreSigned", "keyData": "eA==", "signedIdentity": {"type": "remapIdentity", "prefix": "a", "signedPrefix": "b"}}]}}}))
write("node_files", "auth.json", json.dumps({"auths": {"https://r.example/v1/": {"auth": "dTpw"}}, "credHelpers": {"r.example": "x"}, "credsStore": "y"}))
write("node_files", "challenge", 'Bearer realm="https://a.example/token",service="s",scope="repository:a:pull", Basic realm="x"')
write("node_files", "key.pem", "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n")


def dhcp(*options, sname=b"", file=b""):
    head = bytes([2, 1, 6, 0]) + b"\xde\xad\xbe\xef" + bytes(4) + bytes([0] * 4 + [10, 5, 0, 100] + [10, 5, 0, 1] + [0] * 4)
    body = b"".join(bytes([number, len(value)]) + value for number, value in options)
    chaddr = bytes([2, 0, 0, 0, 0, 5]) + bytes(10)
    return head + chaddr + sname.ljust(64, b"\0") + file.ljust(128, b"\0") + bytes([99, 130, 83, 99]) + body + b"\xff"


usual = [(53, b"\5"), (54, bytes([10, 5, 0, 1])), (51, bytes([0, 0, 0, 60])), (1, bytes([255, 255, 255, 0])), (3, bytes([10, 5, 0, 1]))]
classless = (121, bytes([0, 10, 5, 0, 1, 24, 192, 0, 2, 10, 5, 0, 9]))
write("dhcp", "ack", dhcp(*usual))
write("dhcp", "routes", dhcp(*usual, classless, (33, bytes([172, 16, 0, 0, 10, 5, 0, 9])), (6, bytes(8)), (15, b"x.example"), (26, b"\5\x78")))
write("dhcp", "nak", dhcp((53, b"\6"), (56, b"no")))
write("dhcp", "overload", dhcp((53, b"\2"), (52, b"\3"), sname=bytes([12, 1, 97, 255]), file=bytes([12, 1, 98, 255])))
message = dhcp(*usual)
udp = bytes([0, 67, 0, 68]) + (len(message) + 8).to_bytes(2, "big") + bytes(2) + message
write("dhcp", "packet", bytes([0x45, 0]) + (len(udp) + 20).to_bytes(2, "big") + bytes([0, 0, 0, 0, 64, 17, 0, 0, 10, 5, 0, 1, 10, 5, 0, 100]) + udp)

# Sessions as clients start them. The dictionary is read from the server's source.
source = open(os.path.join(HERE, "../../shim/stream/spdy/dictionary.rs")).read()
words = re.findall(r'"([^"]*)"', re.search(r"WORDS.*?\];", source, re.S).group(0))
rest = re.search(r'REST: &str = "(.*?)";', source, re.S).group(1)
dictionary = b"".join(len(word).to_bytes(4, "big") + word.encode() for word in words) + re.sub(r"\\\n\s*", "", rest).encode()
assert zlib.adler32(dictionary) == 0xE3C6A7C2


def control(kind, payload, flags=0):
    return b"\x80\x03" + kind.to_bytes(2, "big") + bytes([flags]) + len(payload).to_bytes(3, "big") + payload


def numbers(*values):
    return b"".join(value.to_bytes(4, "big") for value in values)


def session(*streams):
    deflate = zlib.compressobj(9, zdict=dictionary)
    frames = b""
    for number, headers in enumerate(streams):
        block = numbers(len(headers)) + b"".join(numbers(len(text)) + text.encode() for pair in headers.items() for text in pair)
        block = deflate.compress(block) + deflate.flush(zlib.Z_SYNC_FLUSH)
        frames += control(1, numbers(2 * number + 1, 0) + b"\0\0" + block)
    return frames


write("spdy", "exec", session({"streamtype": "error"}, {"streamtype": "stdin"}, {"streamtype": "stdout"}) + numbers(3, 0x01000005) + b"input")
write("spdy", "forward", session({"streamtype": "error", "port": "80", "requestid": "0"}, {"streamtype": "data", "port": "80", "requestid": "0"}))
write("spdy", "control", control(4, numbers(1, 7, 65536)) + control(6, numbers(1)) + control(9, numbers(0, 1000)) + control(3, numbers(1, 5)) + control(7, numbers(1, 0)) + control(11, b"x"))
write("spdy", "bomb", session({"x": "x" * 65000}, {"x": "y" * 70000}))


def masked(first, payload):
    length = bytes([0x80 | len(payload)]) if len(payload) < 126 else b"\xfe" + len(payload).to_bytes(2, "big")
    return bytes([first]) + length + b"mask" + bytes(byte ^ b"mask"[i % 4] for i, byte in enumerate(payload))


write("websocket", "channels", masked(0x82, b"\0input") + masked(0x82, b'\x04{"Width":80,"Height":24}') + masked(0x82, b"\xff\0") + masked(0x88, b"\x03\xe8"))
write("websocket", "parts", masked(0x01, b"0aGV") + masked(0x89, b"ping") + masked(0x80, b"sbG8=") + masked(0x82, b"x" * 200))

for name, text in {
    "empty": "{}",
    "none": "null",
    "bridge": '{"cniVersion":"1.0.0","interfaces":[{"name":"br0","mac":"02:00:00:00:00:02"},{"name":"eth0","mac":"02:00:00:00:00:01","sandbox":"/run/netns/x"}],"ips":[{"address":"10.0.0.2/24","gateway":"10.0.0.1","interface":1},{"address":"fd00::2/64"}],"routes":[{"dst":"0.0.0.0/0"},{"dst":"::/0","gw":"fd00::1"}],"dns":{"nameservers":["10.0.0.10"]}}',
    "old": '{"cniVersion":"0.3.1","ips":[{"version":"4","address":"10.0.0.2/24"}],"dns":{}}',
    "new": '{"cniVersion":"1.1.0","interfaces":[{"name":"a","mtu":1400,"socketPath":"/x","pciID":"0000:00:1f.6"}],"routes":[{"dst":"10.0.0.0/8","mtu":1400,"advmss":1360,"priority":5,"table":100,"scope":253}]}',
    "wrong": '{"ips":[{"address":"10.0.0.2"}]}',
}.items():
    write("cni_result", name, text)

for name, text in {
    "hello": '{"id":1,"call":{"Hello":{"protocol":2}}}',
    "create": '{"id":2,"call":{"Start":{"container":"c"}}}',
    "signal": '{"id":3,"call":{"Signal":{"container":"c","signal":9}}}',
    "attach": '{"id":4,"call":{"Attach":{"container":"c","client":"k","stdin":0,"stdout":1,"stderr":null}}}',
    "answer": '{"Answer":{"id":2,"result":{"Ok":{"Created":{"pid":7}}}}}',
    "failure": '{"Answer":{"id":2,"result":{"Err":{"Init":{"step":"Mount","errno":13,"index":7,"detail":"move_mount"}}}}}',
    "exited": '{"Event":{"Exited":{"container":"c","record":{"code":137,"signal":9,"oom_killed":true,"started_at":1,"finished_at":2}}}}',
    "unknown": '{"id":7,"call":{"Levitate":{"height":3}}}',
}.items():
    write("keeper", name, text)
write("keeper", "ready", (1).to_bytes(4, "little") + bytes(176))
write("keeper", "failed", b"".join(n.to_bytes(4, "little") for n in (2, 10, 13, 7, 4)) + b"text" + bytes(156))

for name, text in {
    "allow": '{"defaultAction":"SCMP_ACT_ALLOW"}',
    "log": '{"defaultAction":"SCMP_ACT_LOG","flags":["SECCOMP_FILTER_FLAG_LOG"]}',
    "names": '{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":38,"architectures":["SCMP_ARCH_X86_64","SCMP_ARCH_X86"],"syscalls":[{"names":["read","write","exit_group"],"action":"SCMP_ACT_ALLOW"}]}',
    "arguments": '{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["clone"],"action":"SCMP_ACT_ERRNO","args":[{"index":0,"value":2114060288,"valueTwo":0,"op":"SCMP_CMP_MASKED_EQ"}]},{"names":["personality"],"action":"SCMP_ACT_KILL","args":[{"index":0,"value":8,"op":"SCMP_CMP_GT"},{"index":0,"value":4294967295,"op":"SCMP_CMP_NE"}]}]}',
    "notify": '{"defaultAction":"SCMP_ACT_ALLOW","listenerPath":"/run/a.sock","syscalls":[{"names":["mknod"],"action":"SCMP_ACT_NOTIFY"}]}',
    "argument-9": '{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_TRAP","args":[{"index":9,"value":1,"op":"SCMP_CMP_EQ"}]}]}',
}.items():
    write("seccomp", name, text)
