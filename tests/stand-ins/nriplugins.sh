#!/usr/bin/env bash
# Builds nriplugins, NRI plugins for tests that use the reference library for plugins. Prints only the path of the program on
# standard output.
#
# Environment:
#   BERTH_CACHE    folder for the program (default ~/.cache/berth)
set -eu
here=$(cd "$(dirname "$0")" && pwd)
. "$here/gobuild.sh"

version=v0.12.5
stamp=$(sha256sum "$here/nriplugins/main.go" | cut -c1-16)
bin="${BERTH_CACHE:-$HOME/.cache/berth}/nriplugins-$stamp-nri-$version"

if [ ! -x "$bin/nriplugins" ]; then
    mkdir -p "$bin"
    build_in "github.com/containerd/nri@$version" sh -c "
        mkdir -p plugins/nriplugins && cp '$here/nriplugins/main.go' plugins/nriplugins/ &&
        go build -trimpath -ldflags '-s -w' -o '$bin/nriplugins.new' ./plugins/nriplugins"
    mv "$bin/nriplugins.new" "$bin/nriplugins"
fi
echo "$bin/nriplugins"
