#!/usr/bin/env bash
# Builds the containerd for comparison with berth, at a pinned version from the Go module proxy. It is built once.
#
#   bench/containerd.sh      prints only the folder with the programs on standard output
#
# Environment:
#   BERTH_CACHE    folder for the programs (default ~/.cache/berth)
set -eu

version=v2.4.2
bin="${BERTH_CACHE:-$HOME/.cache/berth}/bin-containerd-$version"
. "$(dirname "$0")/../tests/stand-ins/gobuild.sh"

if [ ! -x "$bin/complete" ]; then
    command -v go >/dev/null || { echo "containerd.sh: Go toolchain not found" >&2; exit 1; }
    mkdir -p "$bin"
    flags="-s -w -X github.com/containerd/containerd/v2/version.Version=${version#v}"
    build_in "github.com/containerd/containerd/v2@$version" \
        go build -trimpath -tags "no_btrfs no_devmapper no_zfs" -ldflags "$flags" -o "$bin/" ./cmd/containerd ./cmd/containerd-shim-runc-v2
    install -m 755 /dev/null "$bin/complete"
fi
echo "$bin"
