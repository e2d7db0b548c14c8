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
keys=/usr/share/keyrings/debian-archive-keyring.gpg

if [ ! -e "$folder/complete" ]; then
    work=$(mktemp -d "${TMPDIR:-/tmp}/berth-criu-XXXXXX")
    trap 'rm -rf "$work"' EXIT
    # apt runs with a separate configuration and an empty list of installed packages: the host's is neither read nor
    # changed, and every library is part of the download.
    mkdir -p "$work/lists/partial" "$work/archives/partial" "$work/packages" "$folder"
    : >"$work/status"
    echo "deb [signed-by=$keys] http://deb.debian.org/debian $suite main" >"$work/sources.list"
    cat >"$work/apt.conf" <<CONF
Dir::State "$work";
Dir::State::lists "$work/lists";
Dir::State::status "$work/status";
Dir::Cache "$work";
Dir::Etc::sourcelist "$work/sources.list";
Dir::Etc::sourceparts "-";
Acquire::Languages "none";
APT::Install-Recommends "false";
APT::Sandbox::User "root";
CONF
    export APT_CONFIG="$work/apt.conf"
    # An empty line is a failure of apt-get.
    needed=$(apt-get update -qq >&2 && apt-get --simulate install criu | awk '/^Inst/ { print $2 }')
    [ -n "$needed" ] || { echo "criu.sh: Debian's package criu was not found in $suite" >&2; exit 1; }
    # shellcheck disable=SC2086 # one word for each package
    (cd "$work/packages" && apt-get download -q $needed >/dev/null) || {
        echo "criu.sh: failed to download Debian's package criu" >&2
        exit 1
    }
    for package in "$work"/packages/*.deb; do dpkg-deb -x "$package" "$folder"; done
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
