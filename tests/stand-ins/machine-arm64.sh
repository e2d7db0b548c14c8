#!/usr/bin/env bash
# Downloads the kernel and the programs of an arm64 machine, Debian packages, without installing them. Prints the folder
# with the files of the packages.
#
# Environment:
#   BERTH_CACHE    folder for the packages' files (default ~/.cache/berth)
set -eu

here=$(dirname "$0")
# shellcheck source=tests/stand-ins/debian.sh
. "$here/debian.sh"
suite=trixie
stamp=$(cat "$0" "$here/debian.sh" | sha256sum | cut -c1-16)
folder="${BERTH_CACHE:-$HOME/.cache/berth}/machine-arm64-$stamp"

if [ ! -e "$folder/complete" ]; then
    echo "getting an arm64 machine of Debian $suite" >&2
    # The kernel comes without the tools that make an initramfs.
    unpack_debian "$folder" "$suite" arm64 '(initramfs-tools|dracut|linux-base|udev|systemd|perl|debconf).*' \
        linux-image-arm64 apparmor bash busybox coreutils debianutils findutils iperf3 iproute2 iptables kmod libc-bin mount \
        nftables tar util-linux util-linux-extra
    # Packages put some programs of the merged /usr below /.
    for name in bin sbin lib; do
        [ -L "$folder/$name" ] || [ ! -d "$folder/$name" ] || { cp -a "$folder/$name/." "$folder/usr/$name/" && rm -r "${folder:?}/$name"; }
        [ -e "$folder/$name" ] || ln -s "usr/$name" "$folder/$name"
    done
    # Links that the packages make when they are installed.
    for name in iptables ip6tables; do ln -sf "$name-nft" "$folder/usr/sbin/$name"; done
    ln -sf bash "$folder/usr/bin/sh"
    release=$(basename "$folder"/usr/lib/modules/*)
    depmod -b "$folder" "$release"
    touch "$folder/complete"
fi
echo "$folder"
