#!/usr/bin/env bash
# Builds the validation tests of opencontainers/runtime-tools, from the Go module proxy. They are built once, into a cache
# folder.
#
#   tests/stand-ins/oci-validation.sh      prints only the folder with the programs on standard output
#
# Environment:
#   BERTH_CACHE    folder for the programs (default ~/.cache/berth)
set -eu

module=github.com/opencontainers/runtime-tools
version=v0.9.0
cache="${BERTH_CACHE:-$HOME/.cache/berth}"
bin="$cache/bin-oci-validation-$version"

if [ ! -e "$bin/complete" ]; then
    command -v go >/dev/null || { echo "oci-validation.sh: Go toolchain not found" >&2; exit 1; }
    work=$(mktemp -d)
    trap 'chmod -R u+w "$work"; rm -rf "$work"' EXIT
    folder=$(cd "$work" && GOFLAGS=-mod=mod go mod download -json "$module@$version" | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p')
    cp -r "$folder/." "$work"
    chmod -R u+w "$work"
    mkdir -p "$bin/tests"
    (
        cd "$work"
        # The release has no go.mod. The versions are those of its time, or the oldest that today's Go can build.
        [ -e go.mod ] || go mod init "$module"
        go get github.com/opencontainers/runtime-spec@v1.0.2 github.com/opencontainers/selinux@v1.4.0 \
            github.com/urfave/cli@v1.22.5 github.com/hashicorp/go-multierror@v1.1.1 \
            github.com/mrunalp/fileutils@v0.5.0 github.com/satori/go.uuid@v1.2.0 \
            github.com/blang/semver@v3.5.1+incompatible github.com/sirupsen/logrus@v1.9.3 \
            github.com/xeipuuv/gojsonschema@v1.2.0 \
            github.com/mndrix/tap-go@v0.0.0-20171203230836-629fa407e90b \
            github.com/syndtr/gocapability@v0.0.0-20200815063812-42c35b437635
        go mod tidy -e
        CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o "$bin/runtimetest" ./cmd/runtimetest
        mapfile -t tests < <(go list ./validation/... | grep -v /util)
        CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o "$bin/tests/" "${tests[@]}"
        cp rootfs-*.tar.gz "$bin"
    ) >&2
    : >"$bin/complete"
fi
echo "$bin"
