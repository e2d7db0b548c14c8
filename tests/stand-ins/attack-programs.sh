#!/usr/bin/env bash
# Compiles the programs of tests/it/attacks as static binaries. Prints only the folder with them on standard output.
#
# Environment:
#   BERTH_CACHE    folder for the programs (default ~/.cache/berth)
#   CC             the C compiler (default gcc)
set -eu
sources=$(cd "$(dirname "$0")/../it/attacks/programs" && pwd)
stamp=$(cat "$sources"/*.[ch] | sha256sum | cut -c1-16)
bin="${BERTH_CACHE:-$HOME/.cache/berth}/attacks-$stamp"

if [ ! -d "$bin" ]; then
    # Two tests may start at the same time, so the complete folder is renamed into place.
    new=$(mktemp -d "$(mkdir -p "${bin%/*}" && echo "$bin").XXXXXX")
    for source in "$sources"/*.c; do
        "${CC:-gcc}" -O1 -static -Wall -Wextra -Werror -o "$new/$(basename "$source" .c)" "$source"
    done
    chmod 755 "$new"
    mv -T "$new" "$bin" 2>/dev/null || rm -rf "$new"
fi
echo "$bin"
