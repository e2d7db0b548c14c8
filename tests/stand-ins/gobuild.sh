# Functions that build Go programs from the module proxy. Scripts source this file.

# Prints the source folder of a module as `go mod download` created it. It is read-only and must be copied for a build.
source_of() { # module@version
    go mod download -json "$1" | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p'
}

# Builds in a copy of the module's folder, because `go install module@version` rejects modules with replace directives.
build_in() { # module@version, then a command
    local module=$1 folder work
    shift
    folder=$(source_of "$module")
    [ -n "$folder" ] || { echo "module $module not found" >&2; return 1; }
    work=$(mktemp -d "${TMPDIR:-/tmp}/berth-tools-XXXXXX")
    cp -r "$folder/." "$work"
    chmod -R u+w "$work"
    echo "building $module" >&2
    local status=0
    (cd "$work" && GOFLAGS=-mod=mod GOTOOLCHAIN=auto CGO_ENABLED=0 "$@" >&2) || status=$?
    rm -rf "$work"
    return "$status"
}
