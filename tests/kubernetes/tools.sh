#!/usr/bin/env bash
# Builds programs of Kubernetes at a pinned version from the Go module proxy. Each is built once, into a cache folder.
#
#   tests/kubernetes/tools.sh PROGRAM...    such as kubelet or kube-apiserver, also etcd, ginkgo, coredns and the programs of
#                                           test images; prints only the folder with the programs
#
# Environment:
#   BERTH_CACHE    folder for the programs (default ~/.cache/berth)
set -eu

kubernetes=v1.37.2
# The version that kubeadm installs.
coredns=v1.14.6
# The published modules of Kubernetes' staging folder have the same minor version.
staging=v0.${kubernetes#v1.}
cache="${BERTH_CACHE:-$HOME/.cache/berth}"
bin="$cache/kubernetes-$kubernetes"

. "$(dirname "$0")/../stand-ins/gobuild.sh"

mkdir -p "$bin"
missing=()
for program in "$@"; do
    if [ -x "$bin/$program" ]; then continue; fi
    command -v go >/dev/null || { echo "tools.sh: Go toolchain not found" >&2; exit 1; }
    if [ "$program" = coredns ]; then
        build_in "github.com/coredns/coredns@$coredns" go build -trimpath -ldflags '-s -w' -o "$bin/coredns" .
    else
        missing+=("$program")
    fi
done
if [ ${#missing[@]} -gt 0 ]; then
    # The module does not contain the staging folder, because each of its folders is a module:
    # their published versions replace them.
    build_in "k8s.io/kubernetes@$kubernetes" bash -euc '
        package=k8s.io/component-base/version minor=${1#v1.}
        version="-X $package.gitVersion=$1 -X $package.gitMajor=1 -X $package.gitMinor=${minor%%.*}"
        staging=$2 bin=$3
        shift 3
        sed -i -E "s#=> \./staging/src/(.*)#=> \1 $staging#" go.mod
        rm -f go.work go.work.sum
        export GOWORK=off
        for program in "$@"; do
            case $program in
            e2e.test | e2e_node.test) package=./test/${program%.test} ;;
            agnhost | nonewprivs | regression-issue-74839) package=./test/images/$program ;;
            # In the versions that Kubernetes itself depends on.
            etcd) package=go.etcd.io/etcd/server/v3 ;;
            ginkgo) package=github.com/onsi/ginkgo/v2/ginkgo ;;
            sample-apiserver) package=k8s.io/sample-apiserver ;;
            *) package=./cmd/$program ;;
            esac
            case $program in
            *.test) go test -c -trimpath -ldflags "-s -w $version" -o "$bin/$program" "$package" ;;
            *) go build -trimpath -ldflags "-s -w $version" -o "$bin/$program" "$package" ;;
            esac
        done' bash "$kubernetes" "$staging" "$bin" "${missing[@]}"
fi
echo "$bin"
