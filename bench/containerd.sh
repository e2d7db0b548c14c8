#!/usr/bin/env bash
# Gets the containerd with which berth is compared, at a pinned version, from the Go module proxy. It is built once.
#
#   bench/containerd.sh      prints the folder with the programs, and nothing else, on standard output
#
# Environment:
#   BERTH_CACHE    where they are kept (default ~/.cache/berth)
set -eu

version=v2.4.2
bin="${BERTH_CACHE:-$HOME/.cache/berth}/bin-containerd-$version"
. "$(dirname "$0")/../tests/stand-ins/gobuild.sh"

if [ ! -x "$bin/complete" ]; then
    command -v go >/dev/null || { echo "containerd.sh: no Go toolchain here" >&2; exit 1; }
    mkdir -p "$bin"
    flags="-s -w -X github.com/containerd/containerd/v2/version.Version=${version#v}"
    build_in "github.com/containerd/containerd/v2@$version" \
        go build -trimpath -tags "no_btrfs no_devmapper no_zfs" -ldflags "$flags" -o "$bin/" ./cmd/containerd ./cmd/containerd-shim-runc-v2
    install -m 755 /dev/null "$bin/complete"
fi
echo "$bin"
