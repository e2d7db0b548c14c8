#!/usr/bin/env python3
"""Builds stand-ins for the images that critest pulls from this machine's Debian packages, and pushes them.

usage: images.py URL FOLDER

URL is a registry (http://127.0.0.1:5000), FOLDER is for temporary files. The names are those of critest without the
registry's host: mirrors lead there. The images contain only what the tests use:

- Debian's busybox, not busybox-static: the latter runs applets inside its shell, so a masked /bin/ls has no effect;
- applets as hard links, and pgrep and ipcs, which busybox does not have here;
- nginx as the web servers.

Images under `suites/` are for the suites of other runtimes (tests/suites).
"""

import json
import os
import subprocess
import sys
import urllib.parse
import urllib.request

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../stand-ins"))
from oci import ARCH, Store, Tar, read, which  # noqa: E402

TOOLS = "k8s-staging-cri-tools"
E2E = "e2e-test-images"
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PASSWD = "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/bin/false\nwww-data:x:33:33:www-data:/var/www:/bin/false\nnobody:x:65534:65534:nobody:/home:/bin/false\n"
GROUP = "root:x:0:\ndaemon:x:1:\nwww-data:x:33:\nnogroup:x:65534:\n"

NONEWPRIVS = r"""
#include <stdio.h>
#include <unistd.h>
int main(void) { printf("Effective uid: %d\n", (int)geteuid()); return 0; }
"""

NGINX = """
user root;
daemon off;
pid /var/run/nginx.pid;
error_log /dev/stderr;
worker_processes 1;
events {{ worker_connections 64; }}
http {{
    access_log /dev/stdout;
    default_type text/html;
    client_body_temp_path /tmp/nginx-body;
    proxy_temp_path /tmp/nginx-proxy;
    fastcgi_temp_path /tmp/nginx-fastcgi;
    uwsgi_temp_path /tmp/nginx-uwsgi;
    scgi_temp_path /tmp/nginx-scgi;
    server {{ listen {port}; root /usr/share/nginx/html; index index.html; }}
}}
"""


def compiled(folder, name, source):
    program, text = os.path.join(folder, name), os.path.join(folder, name + ".c")
    with open(text, "w") as file:
        file.write(source)
    subprocess.run([which("gcc", "gcc"), "-static", "-Os", "-s", "-o", program, text], check=True)
    return program


def busybox():
    tar = Tar()
    program = which("busybox", "busybox")
    for folder in ["bin", "dev", "etc", "home", "proc", "root", "sys", "usr", "usr/bin", "usr/sbin", "var", "var/run", "var/www"]:
        tar.folder(folder)
    tar.folder("tmp", 0o1777)
    tar.program("bin/busybox", program)
    applets = subprocess.run([program, "--list"], stdout=subprocess.PIPE, text=True, check=True).stdout.split()
    for applet in applets:
        if applet not in ("busybox", "pgrep", "ipcs"):
            tar.link("bin/" + applet, "bin/busybox")
    tar.program("usr/bin/pgrep", which("pgrep", "procps"))
    tar.program("usr/bin/ipcs", which("ipcs", "util-linux-extra"))
    tar.file("etc/passwd", PASSWD.encode())
    tar.file("etc/group", GROUP.encode())
    tar.file("etc/nsswitch.conf", b"hosts: files dns\n")
    return tar.bytes()


def web_server(port):
    tar = Tar()
    tar.program("usr/sbin/nginx", which("nginx", "nginx-light"))
    for folder in ["etc/nginx", "var/log", "var/log/nginx", "var/lib", "var/lib/nginx", "usr/share", "usr/share/nginx", "usr/share/nginx/html"]:
        tar.folder(folder)
    tar.file("etc/nginx/nginx.conf", NGINX.format(port=port).encode())
    tar.file("usr/share/nginx/html/index.html", b"<html><body>Welcome to nginx!</body></html>\n")
    return tar.bytes()


def with_file(name, text=""):
    tar = Tar()
    tar.file(name, text.encode())
    return tar.bytes()


def predefined_group():
    tar = Tar()
    tar.folder("etc")
    tar.file("etc/passwd", (PASSWD + "default-user:x:1000:1000::/home/default-user:/bin/sh\n").encode())
    tar.file("etc/group", (GROUP + "default-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n").encode())
    tar.folder("home/default-user", owner=(1000, 1000))
    return tar.bytes()


def with_wheel():
    tar = Tar()
    tar.file("etc/group", (GROUP + "wheel:x:10:root\n").encode())
    return tar.bytes()


def copied_up():
    tar = Tar()
    for folder, name in [("test_dir", "test_file"), ("C:/weird_test_dir", "weird_test_file"), (":colon_prefixed", "colon_prefixed_file")]:
        tar.file(f"{folder}/{name}", b"test_content\n")
    return tar.bytes()


def owned():
    tar = Tar()
    tar.folder("test_dir", owner=(65534, 65534))
    return tar.bytes()


def build(store, folder):
    base = busybox()
    shell = {"Cmd": ["sh"], "Env": [PATH]}
    store.image(f"{E2E}/busybox:1.29-2", [base], shell)
    server = {"Cmd": ["/usr/sbin/nginx"], "Env": [PATH]}
    store.image(f"{E2E}/nginx:1.14-2", [base, web_server(80)], server)
    store.image(f"{TOOLS}/hostnet-nginx-{ARCH}:latest", [base, web_server(12003)], server)
    store.image(f"{TOOLS}/hostnet-nginx:latest", [base, web_server(12003)], server)
    # The tests look for its name in its log.
    store.image(
        f"{E2E}/httpd:2.4.39-4",
        [base, web_server(80)],
        {"Cmd": ["sh", "-c", "echo httpd starts; exec /usr/sbin/nginx"], "Env": [PATH]},
    )
    tar = Tar()
    tar.file("nnp", read(compiled(folder, "nnp", NONEWPRIVS)), 0o4755)
    store.image(f"{E2E}/nonewprivs:1.3", [base, tar.bytes()], {"Entrypoint": ["/nnp"], "Env": [PATH]})
    pause = compiled(folder, "pause", "#include <unistd.h>\nint main(void) { for (;;) pause(); }\n")
    for version in ["3.8", "3.9", "3.10", "3.10.1"]:
        tar = Tar()
        tar.file("pause", read(pause), 0o755)
        tar.file("version", version.encode())
        store.image(f"pause:{version}", [tar.bytes()], {"Entrypoint": ["/pause"]})
    for name, user in [
        ("uid", "1002"),
        ("username", "www-data"),
        ("uid-group", "1003:1004"),
        ("username-group", "www-data:1004"),
    ]:
        store.image(f"{TOOLS}/test-image-user-{name}:latest", [base], {**shell, "User": user})
    store.image(f"{TOOLS}/test-image-predefined-group:latest", [base, predefined_group()], {**shell, "User": "1000"})
    for name in ["1", "2", "3", "latest", "digest"]:
        store.image(f"{TOOLS}/test-image-{name}:latest", [base, with_file(f"test-image-{name}")], shell)
    store.image("suites/busybox:1", [base, with_wheel()], shell)
    volumes = {"/test_dir": {}, "C:/weird_test_dir": {}, "/:colon_prefixed": {}}
    store.image("suites/volume-copy-up:1", [base, copied_up()], {**shell, "Volumes": volumes})
    store.image("suites/volume-ownership:1", [base, owned()], {**shell, "Volumes": {"/test_dir": {}}})
    for tag in ["1", "2", "3"]:
        store.image(f"{TOOLS}/test-image-tags:{tag}", [base, with_file("same-image")], shell)
    for tag in ["test", "all"]:
        store.image(f"{TOOLS}/test-image-tag:{tag}", [base, with_file("test-image-tag")], shell)


def call(method, url, data=None, media_type="application/octet-stream"):
    request = urllib.request.Request(url, data=data, method=method, headers={"Content-Type": media_type})
    with urllib.request.urlopen(request) as answer:
        return answer.headers


def push(url, store, name, manifest):
    """OCI distribution spec, "Push": each blob in one piece, then the manifest."""
    repository, tag = name.rsplit(":", 1)

    def blob(digest):
        return read(os.path.join(store.folder, "blobs", digest.split(":")[1]))

    content = blob(manifest["digest"])
    parsed = json.loads(content)
    for part in [parsed["config"], *parsed["layers"]]:
        location = call("POST", f"{url}/v2/{repository}/blobs/uploads/", b"")["Location"]
        place = urllib.parse.urljoin(url, location)
        separator = "&" if "?" in place else "?"
        call("PUT", f"{place}{separator}digest={part['digest']}", blob(part["digest"]))
    call("PUT", f"{url}/v2/{repository}/manifests/{tag}", content, manifest["mediaType"])


def main():
    url, folder = sys.argv[1:]
    store = Store(folder)
    build(store, folder)
    for name, manifest in store.names.items():
        push(url, store, name, manifest)


if __name__ == "__main__":
    main()
