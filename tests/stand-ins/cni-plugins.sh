#!/usr/bin/env bash
# Gets the CNI project's reference plugins and cnitool, with which the built-in plugins are compared, at pinned versions
# from the Go module proxy. They are built once, into a cache folder.
#
#   tests/stand-ins/cni-plugins.sh      prints the folder with the programs, and nothing else, on standard output
#
# Environment:
#   BERTH_CACHE    where they are kept (default ~/.cache/berth)
set -eu

plugins=v1.10.0
cni=v1.3.1
cache="${BERTH_CACHE:-$HOME/.cache/berth}"
bin="$cache/bin-cni-plugins-$plugins-cnitool-$cni"

. "$(dirname "$0")/gobuild.sh"

if [ ! -x "$bin/complete" ]; then
    command -v go >/dev/null || { echo "cni-plugins.sh: no Go toolchain here" >&2; exit 1; }
    mkdir -p "$bin"
    build_in "github.com/containernetworking/plugins@$plugins" sh -c "
        for folder in ./plugins/main/* ./plugins/ipam/* ./plugins/meta/*; do
            case \$folder in */windows) continue ;; esac
            go build -trimpath -ldflags '-s -w' -o '$bin/' \$folder || exit 1
        done"
    # A command of the library's own module.
    build_in "github.com/containernetworking/cni@$cni" go build -trimpath -ldflags '-s -w' -o "$bin/cnitool" ./cnitool
    install -m 755 /dev/null "$bin/complete"
fi
echo "$bin"
