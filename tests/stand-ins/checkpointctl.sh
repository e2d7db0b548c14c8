#!/usr/bin/env bash
# Builds checkpointctl, which shows the archives of checkpoints, at a pinned version from the Go module proxy. It is built
# once, into a cache folder.
#
#   tests/stand-ins/checkpointctl.sh      prints only the path of the program on standard output
#
# Environment:
#   BERTH_CACHE    folder for the program (default ~/.cache/berth)
set -eu

version=v1.6.0
cache="${BERTH_CACHE:-$HOME/.cache/berth}"
bin="$cache/bin-checkpointctl-$version"

. "$(dirname "$0")/gobuild.sh"

if [ ! -x "$bin/complete" ]; then
    command -v go >/dev/null || { echo "checkpointctl.sh: Go toolchain not found" >&2; exit 1; }
    mkdir -p "$bin"
    build_in "github.com/checkpoint-restore/checkpointctl@$version" \
        go build -trimpath -ldflags '-s -w' -o "$bin/checkpointctl" .
    install -m 755 /dev/null "$bin/complete"
fi
echo "$bin/checkpointctl"
