# For the scripts that build Go programs from the module proxy; to be sourced.

# The folder of a module's source as `go mod download` left it: read-only, so it is copied before it is built.
source_of() { # module@version
    go mod download -json "$1" | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p'
}

# `go install module@version` refuses a main module with replace directives: its own folder is the main module then.
build_in() { # module@version, then a command
    local module=$1 folder work
    shift
    folder=$(source_of "$module")
    [ -n "$folder" ] || { echo "$module is not available" >&2; return 1; }
    work=$(mktemp -d "${TMPDIR:-/tmp}/berth-tools-XXXXXX")
    cp -r "$folder/." "$work"
    chmod -R u+w "$work"
    echo "building $module" >&2
    local status=0
    (cd "$work" && GOFLAGS=-mod=mod GOTOOLCHAIN=auto CGO_ENABLED=0 "$@" >&2) || status=$?
    rm -rf "$work"
    return "$status"
}
