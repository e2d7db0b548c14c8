#!/usr/bin/env bash
# Builds cargo-machete and cargo-deny from the crates registry, and prints the folder of the programs.
set -eu
cache="${BERTH_CACHE:-$HOME/.cache/berth}"
folder=$cache/cargo-tools
build() { # crate, version
    [ ! -e "$folder/.$1-$2" ] || return 0
    echo "building $1 $2" >&2
    # The programs are not shipped: a short build matters more than their speed.
    CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
        cargo install --quiet --locked --force --root "$folder" --target-dir "$folder/target" --version "$2" "$1" >&2
    rm -rf "$folder/target"
    touch "$folder/.$1-$2"
}
build cargo-machete 0.9.2
build cargo-deny 0.20.2
echo "$folder/bin"
