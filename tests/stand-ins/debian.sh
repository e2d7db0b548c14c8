# shellcheck shell=bash
# Sourced. Downloads Debian packages of any release and architecture with all packages that they depend on, without
# installing them.

# apt runs with a separate configuration and an empty list of installed packages: the host's is neither read nor changed, and
# every library is part of the download.
#
#   unpack_debian FOLDER SUITE ARCHITECTURES LEFT_OUT PACKAGE...
#
# ARCHITECTURES are separated by spaces, the first is that of packages without one in their name. LEFT_OUT is an extended
# regular expression: dependencies that match it are not downloaded.
unpack_debian() (
    folder=$1 suite=$2 architectures=$3 left_out=$4
    shift 4
    keys=/usr/share/keyrings/debian-archive-keyring.gpg
    work=$(mktemp -d "${TMPDIR:-/tmp}/berth-debian-XXXXXX")
    trap 'rm -rf "$work"' EXIT
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
APT::Architecture "${architectures%% *}";
#clear APT::Architectures;
APT::Architectures { "${architectures// /\"; \"}"; };
CONF
    export APT_CONFIG="$work/apt.conf"
    # An empty line is a failure of apt-get.
    needed=$(apt-get update -qq >&2 && apt-get --simulate install "$@" | awk '/^Inst/ { print $2 }' |
        grep -vE "^(${left_out:-/})$")
    [ -n "$needed" ] || { echo "debian.sh: Debian's packages $* were not found in $suite" >&2; return 1; }
    # shellcheck disable=SC2086 # one word for each package
    (cd "$work/packages" && apt-get download -q $needed >/dev/null) || {
        echo "debian.sh: failed to download Debian's packages $*" >&2
        return 1
    }
    for package in "$work"/packages/*.deb; do dpkg-deb -x "$package" "$folder"; done
)
