#!/usr/bin/env bash
# Builds youki's contest, the tests of OCI runtimes of the youki project, at a pinned commit. It is built once, into a cache
# folder. Needs git, libseccomp-dev and pkg-config.
#
#   tests/stand-ins/oci-contest.sh      prints only the folder with the programs on standard output
#
# Environment:
#   BERTH_CACHE      folder for the programs (default ~/.cache/berth)
#   YOUKI_SOURCE     a folder with youki's source, instead of a clone
set -eu

commit=bc78720681ad34be682fe1a6daa61cb3bf47762d
cache="${BERTH_CACHE:-$HOME/.cache/berth}"
bin="$cache/bin-oci-contest-$(echo "$commit" | cut -c1-12)"

if [ ! -e "$bin/complete" ]; then
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    if [ -n "${YOUKI_SOURCE:-}" ]; then
        cp -r "$YOUKI_SOURCE/." "$work"
    else
        git init -q "$work"
        git -C "$work" fetch -q --depth 1 https://github.com/youki-dev/youki "$commit" >&2
        git -C "$work" checkout -q FETCH_HEAD
    fi
    mkdir -p "$bin"
    (
        cd "$work"
        # Built alone, runtimetest does not get the features that other packages of the workspace select.
        sed -i 's/^nix = { workspace = true }$/nix = { workspace = true, features = ["dir", "feature", "fs", "hostname", "mount", "process", "resource", "sched", "user"] }/' \
            tests/contest/runtimetest/Cargo.toml
        target=$(rustc -vV | sed -n 's/^host: //p')
        export CARGO_TARGET_DIR=$work/target CARGO_PROFILE_DEV_DEBUG=0
        cargo build --locked -p contest
        # It runs in root filesystems without libraries.
        RUSTFLAGS="-C target-feature=+crt-static" cargo build --locked --target "$target" -p runtimetest
        cp target/debug/contest "target/$target/debug/runtimetest" "$bin"
        bundle=tests/contest/contest/bundle-$(uname -m).tar.gz
        [ -e "$bundle" ] || bundle=tests/contest/contest/bundle.tar.gz
        cp "$bundle" "$bin/bundle.tar.gz"
    ) >&2
    : >"$bin/complete"
fi
echo "$bin"
