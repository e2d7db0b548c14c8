#!/usr/bin/env bash
# Downloads CRIU with the libraries that it needs, Debian packages of a newer release than this host's, without installing
# them. Prints the path of a program that runs CRIU with the package's own loader.
#
# Debian 13 has 4.1.1, which cannot dump a TCP socket on Linux 6.16 and newer; Debian 14 has 4.2.
#
# Environment:
#   BERTH_CACHE    folder for the packages' files (default ~/.cache/berth)
set -eu

suite=forky
cache="${BERTH_CACHE:-$HOME/.cache/berth}"
folder="$cache/criu-$suite"
# shellcheck source=tests/stand-ins/debian.sh
. "$(dirname "$0")/debian.sh"

if [ ! -e "$folder/complete" ]; then
    unpack_debian "$folder" "$suite" "$(dpkg --print-architecture)" '' criu
    loader=$(find "$folder/usr/lib" -name 'ld-linux-*.so.*' -path '*-linux-gnu*' | head -n 1)
    [ -n "$loader" ] || { echo "criu.sh: the packages contain no loader" >&2; exit 1; }
    cat >"$folder/criu" <<RUN
#!/bin/sh
exec "$loader" --library-path "$(dirname "$loader")" "$folder/usr/sbin/criu" "\$@"
RUN
    chmod 755 "$folder/criu"
    "$folder/criu" --version >/dev/null
    touch "$folder/complete"
fi
echo "$folder/criu"
