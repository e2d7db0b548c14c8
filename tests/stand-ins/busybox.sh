#!/usr/bin/env bash
# Builds busybox from Debian's source with all applets (`make defconfig`), once, into a cache folder. Prints the program's path.
#
# Debian's own build lacks applets that the suites of Kubernetes use, and its shell drops variables with names such as `a-b`.
#
# Environment:
#   BERTH_CACHE    folder for the program (default ~/.cache/berth)
set -eu

version=1.37.0
digest=3311dff32e746499f4df0d5df04d7eb396382d7e108bb9250e7b519b837043a4
cache="${BERTH_CACHE:-$HOME/.cache/berth}"
program="$cache/busybox-$version/busybox"

if [ ! -x "$program" ]; then
    work=$(mktemp -d "${TMPDIR:-/tmp}/berth-busybox-XXXXXX")
    trap 'rm -rf "$work"' EXIT
    archive="$work/busybox.tar.bz2"
    curl --fail --silent --show-error --output "$archive" \
        "http://deb.debian.org/debian/pool/main/b/busybox/busybox_$version.orig.tar.bz2"
    echo "$digest  $archive" | sha256sum --check --quiet >&2
    tar -xjf "$archive" -C "$work" --strip-components 1
    echo "building busybox $version" >&2
    # `tc` needs kernel headers of before 6.8.
    (cd "$work" && make defconfig && sed -i 's/^CONFIG_TC=y/# CONFIG_TC is not set/' .config && make -j "$(nproc)" busybox) \
        >"$work/log" 2>&1 || { tail -20 "$work/log" >&2; exit 1; }
    mkdir -p "$(dirname "$program")"
    install -m 755 "$work/busybox" "$program"
fi
echo "$program"
