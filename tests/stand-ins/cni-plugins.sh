#!/usr/bin/env bash
# Builds the CNI project's reference plugins and cnitool, for comparison with the built-in plugins, at pinned versions from
# the Go module proxy. They are built once, into a cache folder.
#
#   tests/stand-ins/cni-plugins.sh      prints only the folder with the programs on standard output
#
# Environment:
#   BERTH_CACHE    folder for the programs (default ~/.cache/berth)
set -eu

plugins=v1.10.0
cni=v1.3.1
cache="${BERTH_CACHE:-$HOME/.cache/berth}"
bin="$cache/bin-cni-plugins-$plugins-cnitool-$cni"

. "$(dirname "$0")/gobuild.sh"

if [ ! -x "$bin/complete" ]; then
    command -v go >/dev/null || { echo "cni-plugins.sh: Go toolchain not found" >&2; exit 1; }
    mkdir -p "$bin"
    build_in "github.com/containernetworking/plugins@$plugins" sh -c "
        for folder in ./plugins/main/* ./plugins/ipam/* ./plugins/meta/*; do
            case \$folder in */windows) continue ;; esac
            go build -trimpath -ldflags '-s -w' -o '$bin/' \$folder || exit 1
        done"
    # cnitool is a command in the module of the library.
    build_in "github.com/containernetworking/cni@$cni" go build -trimpath -ldflags '-s -w' -o "$bin/cnitool" ./cnitool
    install -m 755 /dev/null "$bin/complete"
fi
echo "$bin"
