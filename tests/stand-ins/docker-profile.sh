#!/usr/bin/env bash
# Downloads Docker's default seccomp profile from the Go module proxy, for comparison with berth's default profile. Prints
# its path.
#
# Environment:
#   BERTH_CACHE    folder for the profile (default ~/.cache/berth)
set -eu

version=v0.3.0
profile="${BERTH_CACHE:-$HOME/.cache/berth}/docker-profile-$version.json"

if [ ! -s "$profile" ]; then
    command -v go >/dev/null || { echo "docker-profile.sh: Go toolchain not found" >&2; exit 1; }
    mkdir -p "$(dirname "$profile")"
    folder=$(cd / && GOFLAGS=-mod=mod go mod download -json "github.com/moby/profiles/seccomp@$version" |
        sed -n 's/^\t"Dir": "\(.*\)",$/\1/p')
    install -m 644 "$folder/default.json" "$profile"
fi
echo "$profile"
