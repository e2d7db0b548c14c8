#!/usr/bin/env bash
# Builds streamclient, a client for streaming sessions that uses the same libraries as kubectl. It is built in the module of
# cri-tools, which pins their versions. Prints only the folder with streamclient and crictl on standard output.
#
# Environment:
#   BERTH_CACHE    folder for the program (default ~/.cache/berth)
set -eu
here=$(cd "$(dirname "$0")" && pwd)
. "$here/gobuild.sh"

tools=$("$here/../conformance/tools.sh")
module=$(sed -n 's/^cri_tools=/sigs.k8s.io\/cri-tools@/p' "$here/../conformance/tools.sh")
stamp=$(sha256sum "$here/streamclient/main.go" | cut -c1-16)
bin="${BERTH_CACHE:-$HOME/.cache/berth}/streamclient-$stamp-${module##*@}"

if [ ! -x "$bin/streamclient" ]; then
    mkdir -p "$bin"
    ln -sf "$tools/crictl" "$bin/crictl"
    build_in "$module" sh -c "
        mkdir -p cmd/streamclient && cp '$here/streamclient/main.go' cmd/streamclient/ &&
        go build -trimpath -ldflags '-s -w' -o '$bin/streamclient.new' ./cmd/streamclient"
    mv "$bin/streamclient.new" "$bin/streamclient"
fi
echo "$bin"
