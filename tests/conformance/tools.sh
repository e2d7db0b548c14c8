#!/usr/bin/env bash
# Gets the real clients with which berth is tested, at pinned versions, from the Go module proxy: crictl and critest
# (sigs.k8s.io/cri-tools) and grpcurl. They are built once, into a cache folder.
#
#   tests/conformance/tools.sh      prints the folder with the programs, and nothing else, on standard output
#
# Environment:
#   BERTH_CACHE    where they are kept (default ~/.cache/berth)
set -eu

cri_tools=v1.36.0
grpcurl=v1.9.4
cache="${BERTH_CACHE:-$HOME/.cache/berth}"
bin="$cache/bin-cri-tools-$cri_tools-grpcurl-$grpcurl"

# The folder of a module's source as `go mod download` left it: read-only, so it is copied before it is built.
source_of() { # module@version
    go mod download -json "$1" | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p'
}

# `go install module@version` refuses a main module with replace directives, as cri-tools has them: its own folder is the
# main module then.
build_in() { # module@version, then a command
    local module=$1 folder work
    shift
    folder=$(source_of "$module")
    [ -n "$folder" ] || { echo "tools.sh: $module is not available" >&2; return 1; }
    work=$(mktemp -d "${TMPDIR:-/tmp}/berth-tools-XXXXXX")
    cp -r "$folder/." "$work"
    chmod -R u+w "$work"
    echo "tools.sh: building $module" >&2
    local status=0
    (cd "$work" && GOFLAGS=-mod=mod GOTOOLCHAIN=auto CGO_ENABLED=0 "$@" >&2) || status=$?
    rm -rf "$work"
    return "$status"
}

if [ ! -x "$bin/complete" ]; then
    command -v go >/dev/null || { echo "tools.sh: no Go toolchain here" >&2; exit 1; }
    mkdir -p "$bin"
    version="-X sigs.k8s.io/cri-tools/pkg/version.Version=${cri_tools#v}"
    build_in "sigs.k8s.io/cri-tools@$cri_tools" sh -c "
        go build -trimpath -ldflags '-s -w $version' -o '$bin/crictl' ./cmd/crictl &&
        go test -c -trimpath -ldflags '-s -w $version' -o '$bin/critest' ./cmd/critest"
    build_in "github.com/fullstorydev/grpcurl@$grpcurl" go build -trimpath -ldflags '-s -w' -o "$bin/grpcurl" ./cmd/grpcurl
    install -m 755 /dev/null "$bin/complete"
fi
echo "$bin"
