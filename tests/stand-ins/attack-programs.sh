#!/usr/bin/env bash
# Compiles the programs of tests/attacks as static binaries. Prints the folder with them, and nothing else, on standard
# output.
#
# Environment:
#   BERTH_CACHE    where they are kept (default ~/.cache/berth)
#   CC             the C compiler (default gcc)
set -eu
sources=$(cd "$(dirname "$0")/../attacks/programs" && pwd)
stamp=$(cat "$sources"/*.[ch] | sha256sum | cut -c1-16)
bin="${BERTH_CACHE:-$HOME/.cache/berth}/attacks-$stamp"

if [ ! -d "$bin" ]; then
    # Two tests may start at the same time: the folder appears with all programs in it.
    new=$(mktemp -d "$(mkdir -p "${bin%/*}" && echo "$bin").XXXXXX")
    for source in "$sources"/*.c; do
        "${CC:-gcc}" -O1 -static -Wall -Wextra -Werror -o "$new/$(basename "$source" .c)" "$source"
    done
    chmod 755 "$new"
    mv -T "$new" "$bin" 2>/dev/null || rm -rf "$new"
fi
echo "$bin"
