#!/usr/bin/env bash
# Builds the clients for the conformance tests, at pinned versions from the Go module proxy: crictl and critest
# (sigs.k8s.io/cri-tools), ginkgo, which critest needs for parallel specs, and grpcurl. They are built once, into a cache folder.
#
#   tests/conformance/tools.sh      prints only the folder with the programs on standard output
#
# Environment:
#   BERTH_CACHE    folder for the programs (default ~/.cache/berth)
set -eu

cri_tools=v1.37.0
grpcurl=v1.9.4
cache="${BERTH_CACHE:-$HOME/.cache/berth}"
bin="$cache/bin-cri-tools-$cri_tools-ginkgo-grpcurl-$grpcurl"

. "$(dirname "$0")/../stand-ins/gobuild.sh"

if [ ! -x "$bin/complete" ]; then
    command -v go >/dev/null || { echo "tools.sh: Go toolchain not found" >&2; exit 1; }
    mkdir -p "$bin"
    version="-X sigs.k8s.io/cri-tools/pkg/version.Version=${cri_tools#v}"
    build_in "sigs.k8s.io/cri-tools@$cri_tools" sh -c "
        go build -trimpath -ldflags '-s -w $version' -o '$bin/crictl' ./cmd/crictl &&
        go test -c -trimpath -ldflags '-s -w $version' -o '$bin/critest' ./cmd/critest &&
        go build -trimpath -ldflags '-s -w' -o '$bin/ginkgo' github.com/onsi/ginkgo/v2/ginkgo"
    build_in "github.com/fullstorydev/grpcurl@$grpcurl" go build -trimpath -ldflags '-s -w' -o "$bin/grpcurl" ./cmd/grpcurl
    install -m 755 /dev/null "$bin/complete"
fi
echo "$bin"
