#!/usr/bin/env python3
"""A read-only registry that serves the images of images.py (OCI distribution specification, "pull").

usage: registry.py FOLDER PORT
"""

import http.server
import json
import os
import re
import sys

FOLDER, PORT = sys.argv[1], int(sys.argv[2])
with open(os.path.join(FOLDER, "names.json")) as names_file:
    NAMES = json.load(names_file)
MANIFESTS = {manifest["digest"]: manifest for manifest in NAMES.values()}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path = self.path.split("?")[0]
        if path == "/v2/":
            return self.answer(200, "application/json", b"{}")
        found = re.fullmatch(r"/v2/(.+)/(manifests|blobs)/([^/]+)", path)
        if not found:
            return self.answer(404, "application/json", b"{}")
        name, kind, reference = found.groups()
        if kind == "blobs":
            return self.blob(reference, "application/octet-stream")
        manifest = MANIFESTS.get(reference) or NAMES.get(f"{name}:{reference}")
        if not manifest:
            return self.answer(404, "application/json", b"{}")
        return self.blob(manifest["digest"], manifest["mediaType"])

    do_HEAD = do_GET

    def blob(self, digest, media_type):
        try:
            file = open(os.path.join(FOLDER, "blobs", digest.removeprefix("sha256:").replace("/", "")), "rb")
        except OSError:
            return self.answer(404, "application/json", b"{}")
        with file:
            self.head(200, media_type, os.fstat(file.fileno()).st_size, digest)
            if self.command == "GET":
                self.wfile.flush()
                self.connection.sendfile(file)

    def answer(self, status, media_type, body):
        self.head(status, media_type, len(body), None)
        if self.command == "GET":
            self.wfile.write(body)

    def head(self, status, media_type, length, digest):
        self.send_response(status)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(length))
        if digest:
            self.send_header("Docker-Content-Digest", digest)
        self.end_headers()

    def log_message(self, *_arguments):
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True


Server(("127.0.0.1", PORT), Handler).serve_forever()
