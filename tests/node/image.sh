#!/usr/bin/env bash
# Makes what a virtual Debian 13 node needs: the files of its root folder, its kernel, and a small initramfs. Prints only the
# folder with `root/`, `vmlinuz` and `initramfs`. It is made once, from packages of Debian, without installing them here.
#
# Environment:
#   BERTH_CACHE    folder for the result (default ~/.cache/berth)
set -eu
here=$(cd "$(dirname "$0")" && pwd)
stamp=$(cat "$here/image.sh" "$here/init" "$here/agent" | sha256sum | cut -c1-16)
folder="${BERTH_CACHE:-$HOME/.cache/berth}/node-$stamp"
[ ! -e "$folder/complete" ] || { echo "$folder"; exit 0; }

packages=systemd,systemd-sysv,libpam-systemd,dbus,udev,apparmor,linux-image-amd64,kmod,util-linux,e2fsprogs,iproute2,nftables
packages+=,procps,ca-certificates,curl,containerd
rm -rf "$folder"
mkdir -p "$folder/root"
echo "making a Debian 13 node in $folder" >&2
# The keys of Debian 13 are in the keyring of Debian 12, too.
mmdebstrap --quiet --mode=root --variant=minbase --include="$packages" trixie "$folder/root.tar" \
    "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian trixie main" >&2
tar -C "$folder/root" --numeric-owner --xattrs -xpf "$folder/root.tar" --exclude='./dev/*'
rm "$folder/root.tar"
root=$folder/root

# The host sends commands to the agent through the second serial port. Nobody logs in.
install -m 0755 "$here/agent" "$root/usr/local/sbin/node-agent"
cat >"$root/etc/systemd/system/node-agent.service" <<'END'
[Unit]
Description=Runs commands from the second serial port
After=basic.target
[Service]
ExecStart=/usr/local/sbin/node-agent
StandardInput=tty
StandardOutput=tty
StandardError=journal
TTYPath=/dev/ttyS1
Restart=always
# It also runs while the machine shuts down and while other units are killed.
OOMScoreAdjust=-1000
[Install]
WantedBy=basic.target
END
ln -s /etc/systemd/system/node-agent.service "$root/etc/systemd/system/basic.target.wants/node-agent.service" 2>/dev/null || {
    mkdir -p "$root/etc/systemd/system/basic.target.wants"
    ln -s /etc/systemd/system/node-agent.service "$root/etc/systemd/system/basic.target.wants/node-agent.service"
}
for unit in getty@tty1.service serial-getty@ttyS0.service serial-getty@ttyS1.service apt-daily.timer apt-daily-upgrade.timer \
    e2scrub_all.timer e2scrub_reap.service fstrim.timer dpkg-db-backup.timer systemd-networkd-wait-online.service; do
    ln -sf /dev/null "$root/etc/systemd/system/$unit"
done
# Only docs/guides/from-containerd.md starts it.
ln -sf /dev/null "$root/etc/systemd/system/containerd.service"
mkdir -p "$root/var/log/journal"
echo node >"$root/etc/hostname"
printf '127.0.0.1 localhost node\n' >"$root/etc/hosts"
printf '/dev/vda / ext4 defaults 0 1\n' >"$root/etc/fstab"
: >"$root/etc/resolv.conf"

# The initramfs only mounts the disk. One with all drivers, as the package makes it, takes long to unpack without KVM.
release=$(basename "$root"/lib/modules/*)
cp "$root/boot/vmlinuz-$release" "$folder/vmlinuz"
rm -f "$root"/boot/initrd*
small=$folder/small
mkdir -p "$small"/{bin,dev,proc,sys,mnt,modules}
cp "$(command -v busybox)" "$small/bin/busybox"
ldd "$(command -v busybox)" 2>/dev/null | grep -o '/[^ ]*' | while read -r library; do
    mkdir -p "$small$(dirname "$library")"
    cp -L "$library" "$small$library"
done
cp "$here/init" "$small/init"
number=0
for module in virtio_pci virtio_blk ext4; do
    for file in $(modprobe -d "$root" -S "$release" --show-depends "$module" | sed -n 's/^insmod \([^ ]*\).*/\1/p'); do
        name=$(basename "$file")
        compgen -G "$small/modules/*-${name%.xz}" >/dev/null && continue
        number=$((number + 1))
        case $file in
        *.xz) xz -dc "$file" >"$small/modules/$(printf %03d $number)-${name%.xz}" ;;
        *) cp "$file" "$small/modules/$(printf %03d $number)-$name" ;;
        esac
    done
done
(cd "$small" && find . | cpio --quiet -o -H newc | gzip -1) >"$folder/initramfs"
rm -rf "$small"
touch "$folder/complete"
echo "$folder"
