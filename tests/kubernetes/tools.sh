#!/usr/bin/env bash
# Builds programs of Kubernetes at a pinned version from the Go module proxy. Each is built once, into a cache folder.
#
#   tests/kubernetes/tools.sh PROGRAM...    such as kubelet or kube-apiserver; prints only the folder with the programs
#
# Environment:
#   BERTH_CACHE    folder for the programs (default ~/.cache/berth)
set -eu

kubernetes=v1.37.2
# The published modules of Kubernetes' staging folder have the same minor version.
staging=v0.${kubernetes#v1.}
cache="${BERTH_CACHE:-$HOME/.cache/berth}"
bin="$cache/kubernetes-$kubernetes"

. "$(dirname "$0")/../stand-ins/gobuild.sh"

missing=()
for program in "$@"; do [ -x "$bin/$program" ] || missing+=("$program"); done
if [ ${#missing[@]} -gt 0 ]; then
    command -v go >/dev/null || { echo "tools.sh: Go toolchain not found" >&2; exit 1; }
    mkdir -p "$bin"
    # The module does not contain the staging folder, because each of its folders is a module:
    # their published versions replace them.
    build_in "k8s.io/kubernetes@$kubernetes" bash -euc '
        staging=$1 bin=$2
        shift 2
        sed -i -E "s#=> \./staging/src/(.*)#=> \1 $staging#" go.mod
        rm -f go.work go.work.sum
        export GOWORK=off
        version="-X k8s.io/component-base/version.gitVersion='"$kubernetes"'"
        for program in "$@"; do
            package=./cmd/$program
            [ "$program" != e2e_node.test ] && [ "$program" != e2e.test ] || package=./test/${program%.test}
            case $program in
            *.test) go test -c -trimpath -ldflags "-s -w $version" -o "$bin/$program" "$package" ;;
            *) go build -trimpath -ldflags "-s -w $version" -o "$bin/$program" "$package" ;;
            esac
        done' bash "$staging" "$bin" "${missing[@]}"
fi
echo "$bin"
