#!/usr/bin/env bash
# Builds gRPC clients in several languages: Python with the C core (PyPI), Node with grpc-js (npm), Go, and C++ (Debian).
# Prints only the folder with the programs `python`, `node`, `go` and `cpp` on standard output. Each program takes the arguments
# TARGET METHOD MESSAGE and prints the first response; messages are hexadecimal.
#
# Environment:
#   BERTH_CACHE    folder for the programs (default ~/.cache/berth)
set -eu
here=$(cd "$(dirname "$0")" && pwd)
. "$here/gobuild.sh"

grpcio=1.85.3
grpcjs=1.14.7
grpcgo=v1.85.0
sources="$here/grpcclients"
stamp=$(cat "$0" "$sources"/* | sha256sum | cut -c1-16)
bin="${BERTH_CACHE:-$HOME/.cache/berth}/grpcclients-$stamp"

wrapper() { # name, command
    printf '#!/bin/sh\nexec %s "$@"\n' "$2" >"$bin/$1"
    chmod 755 "$bin/$1"
}

if [ ! -e "$bin/complete" ]; then
    rm -rf "$bin"
    mkdir -p "$bin"
    echo "getting gRPC clients" >&2
    /usr/bin/python3 -m venv "$bin/venv" >&2
    "$bin/venv/bin/pip" install -q --disable-pip-version-check --only-binary :all: "grpcio==$grpcio" >&2
    cp "$sources/client.py" "$bin/client.py"
    wrapper python "$bin/venv/bin/python $bin/client.py"
    npm install --silent --no-audit --no-fund --prefix "$bin" "@grpc/grpc-js@$grpcjs" >&2
    cp "$sources/client.js" "$bin/client.js"
    wrapper node "node $bin/client.js"
    mkdir "$bin/gosource"
    cp "$sources/main.go" "$bin/gosource/"
    (cd "$bin/gosource" && export GOFLAGS=-mod=mod GOTOOLCHAIN=auto CGO_ENABLED=0 && go mod init grpcclient &&
        go get "google.golang.org/grpc@$grpcgo" && go build -trimpath -ldflags '-s -w' -o "$bin/go" .) >&2
    g++ -std=c++17 -o "$bin/cpp" "$sources/client.cc" -Wl,--copy-dt-needed-entries -lgrpc++ -lgrpc -lgpr >&2
    touch "$bin/complete"
fi
echo "$bin"
