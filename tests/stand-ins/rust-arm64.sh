#!/usr/bin/env bash
# Downloads a Rust compiler with the standard library for arm64, Debian packages of a newer release than this host's, without
# installing them. Prints the path of a program that runs rustc with the packages' own loader. rustup has the same library
# (`rustup target add aarch64-unknown-linux-gnu`) where its server can be reached.
#
#   RUSTC=$(tests/stand-ins/rust-arm64.sh) CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc \
#       cargo build --target aarch64-unknown-linux-gnu
#
# The C compiler, the linker and the C library are Debian's package gcc-aarch64-linux-gnu of this host's release.
#
# Environment:
#   BERTH_CACHE    folder for the packages' files (default ~/.cache/berth)
set -eu

here=$(dirname "$0")
# shellcheck source=tests/stand-ins/debian.sh
. "$here/debian.sh"
suite=forky
stamp=$(cat "$0" "$here/debian.sh" | sha256sum | cut -c1-16)
folder="${BERTH_CACHE:-$HOME/.cache/berth}/rust-arm64-$stamp"

if [ ! -e "$folder/complete" ]; then
    host=$(dpkg --print-architecture)
    echo "getting Rust for arm64 of Debian $suite" >&2
    # Neither the C compiler of that release, nor what runs on arm64.
    skip='(gcc|cpp|binutils|lib(gcc-.*-dev|cc1|itm|atomic|asan|lsan|tsan|ubsan|hwasan|quadmath|gomp|gprofng|ctf|isl|mpc|mpfr|gmp)).*'
    skip+='|libc6-dev|libc-dev-bin|linux-libc-dev|([a-km-z].*|lib([^s].*|stdc.*|std-rust-[0-9].*)):arm64'
    unpack_debian "$folder" "$suite" "$host arm64" "$skip" rustc libstd-rust-dev:arm64
    loader=$(find "$folder/usr/lib/$(uname -m)-linux-gnu" -name 'ld-linux-*.so.*' | head -n 1)
    [ -n "$loader" ] || { echo "rust-arm64.sh: the packages contain no loader" >&2; exit 1; }
    mkdir -p "$folder/bin"
    cat >"$folder/bin/rustc" <<RUN
#!/bin/sh
exec "$loader" --library-path "${loader%/*}" "$folder/usr/bin/rustc" --sysroot "$folder/usr" "\$@"
RUN
    chmod 755 "$folder/bin/rustc"
    "$folder/bin/rustc" --version >&2
    touch "$folder/complete"
fi
echo "$folder/bin/rustc"
