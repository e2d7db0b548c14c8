#!/usr/bin/env bash
# Downloads Prometheus, Debian's package, without installing it: its service would run on this host. Prints the folder with
# the programs prometheus and promtool.
#
# Environment:
#   BERTH_CACHE    folder for the package's files (default ~/.cache/berth)
set -eu

folder="${BERTH_CACHE:-$HOME/.cache/berth}/prometheus"

if [ ! -e "$folder/complete" ]; then
    work=$(mktemp -d "${TMPDIR:-/tmp}/berth-prometheus-XXXXXX")
    trap 'rm -rf "$work"' EXIT
    mkdir -p "$folder"
    (cd "$work" && apt-get download -q prometheus >/dev/null && dpkg-deb -x ./prometheus_*.deb "$folder") || {
        echo "prometheus.sh: failed to download Debian's package prometheus" >&2
        exit 1
    }
    touch "$folder/complete"
fi
echo "$folder/usr/bin"
