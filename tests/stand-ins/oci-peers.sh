#!/usr/bin/env bash
# Unpacks Debian 12's podman, conmon and containerd with their libraries, without installing them. Prints the folder, which is a
# cache.
#
# Environment:
#   BERTH_CACHE    folder for the programs (default ~/.cache/berth)
set -eu
here=$(cd "$(dirname "$0")" && pwd)
. "$here/debian.sh"

folder="${BERTH_CACHE:-$HOME/.cache/berth}/oci-peers-bookworm"
if [ ! -e "$folder/complete" ]; then
    rm -rf "$folder"
    # glibc is the host's. The other ones are programs that neither starts here.
    unpack_debian "$folder" bookworm amd64 'libc6|perl.*|libperl.*|gnupg.*|gpg.*|dirmngr|pinentry.*|debconf|dpkg|passwd|golang.*|iptables' \
        podman conmon containerd >&2
    : >"$folder/complete"
fi
echo "$folder"
