# A private node for external test suites: a registry on loopback with stand-in images, and a daemon. A script that runs in a
# private network and mount namespace sources this file.
#
# Needs: here (this folder), cache, tools (see tools.sh), BERTH_BIN, port. Optional: more_config, lines for the daemon's
# configuration.
# Provides: work (a folder), the socket $work/berth.sock, `end PID`. When the script exits, all processes are terminated and all
# files removed.

work=$(mktemp -d "${TMPDIR:-/tmp}/berth-conformance-XXXXXX")
# As /var/lib: root of a user namespace enters the bundle of an OCI runtime by its path.
chmod 755 "$work"
pids=()

end() { # pid
    kill -TERM "$1" 2>/dev/null || return 0
    for _ in $(seq 200); do
        kill -0 "$1" 2>/dev/null || break
        sleep 0.05
    done
    kill -KILL "$1" 2>/dev/null || true
    wait "$1" 2>/dev/null || true
}

# Prints what the daemon of this run has left on the host. The daemon has ended.
leftovers() {
    local found
    [ -f "$work/config.toml" ] || return 0
    found=$("$BERTH_BIN" fsck --config "$work/config.toml" 2>&1) || echo "$found"
    # Pods that could not be removed still have a record.
    find "$work/root/pods" -mindepth 1 -maxdepth 1 2>/dev/null || true
}

remove_pods() {
    "$tools/crictl" --runtime-endpoint "unix://$work/berth.sock" --image-endpoint "unix://$work/berth.sock" \
        rmp --all --force >/dev/null 2>"$work/rmp.log" || cat "$work/rmp.log" >&2
}

finish() {
    local status=$? i
    trap - EXIT
    # Failed specs leave their pods, and pods outlive the daemon.
    [ ! -S "$work/berth.sock" ] || remove_pods
    end_daemon
    for ((i = ${#pids[@]} - 1; i >= 0; i--)); do end "${pids[i]}"; done
    local left
    left=$(leftovers)
    if [ -n "$left" ]; then
        echo "$0: left behind: $left" >&2
        [ "$status" != 0 ] || status=1
    fi
    if [ -n "${BERTH_CONFORMANCE_LOG:-}" ]; then cp "$work/"*.log "$BERTH_CONFORMANCE_LOG/" || true; fi
    rm -rf --one-file-system "$work"
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Waits until something listens on a port of loopback.
listening() {
    for _ in $(seq 200); do
        (: </dev/tcp/127.0.0.1/"$1") 2>/dev/null && return 0
        sleep 0.05
    done
    echo "$0: no listener on port $1" >&2
    return 1
}

start_registry() { # storage folder
    cat >"$work/registry.yml" <<END
version: 0.1
log: { level: error, accesslog: { disabled: true } }
storage: { filesystem: { rootdirectory: "$1" }, delete: { enabled: true } }
http: { addr: "127.0.0.1:$port", secret: conformance }
END
    OTEL_TRACES_EXPORTER=none docker-registry serve "$work/registry.yml" >"$work/registry.log" 2>&1 &
    registry=$!
    pids+=("$registry")
    listening "$port"
}

start_daemon() {
    "$BERTH_BIN" serve --config "$work/config.toml" >"$work/daemon.log" 2>&1 &
    daemon=$!
}

end_daemon() {
    [ -z "${daemon:-}" ] || end "$daemon"
}

# Starts the registry and the daemon, in this network and mount namespace.
start_node() {
    ip link set lo up
    # Sockets and bound namespaces of this run are removed with the mount namespace.
    mount -t tmpfs none /run
    # The images are built once for each version of the scripts and programs.
    stamp=$(cat "$here/images.py" "$here/../stand-ins/oci.py" "$(command -v busybox)" "$(command -v nginx || echo /usr/sbin/nginx)" | sha256sum | cut -c1-16)
    images=$cache/conformance-$stamp
    if [ ! -d "$images" ]; then
        echo "building the stand-in images once in $images" >&2
        rm -rf "$images.new"
        mkdir -p "$images.new/registry" "$work/images"
        start_registry "$images.new/registry"
        python3 "$here/images.py" "http://127.0.0.1:$port" "$work/images"
        end "$registry"
        mv "$images.new" "$images"
    fi
    start_registry "$images/registry"

    for host in registry.k8s.io gcr.io k8s.gcr.io; do
        mkdir -p "$work/certs.d/$host"
        cat >"$work/certs.d/$host/hosts.toml" <<END
server = "http://127.0.0.1:$port"
[host."http://127.0.0.1:$port"]
capabilities = ["pull", "resolve"]
END
    done

    mkdir -p "$work/net.d"
    cat >"$work/config.toml" <<END
socket = "$work/berth.sock"
root = "$work/root"
state = "$work/state"
certs_dir = "$work/certs.d"
registries_conf = "$work/registries.conf"
auth_file = []
signature_policy = "$work/policy.json"
cni_conf_dir = "$work/net.d"
cni_data_dir = "$work/addresses"
cgroup_driver = "cgroupfs"
log_level = "${BERTH_LOG:-debug}"
${more_config:-}
[nri]
socket_path = "$work/nri.sock"
plugin_path = "$work/nri"
[network]
bridge = "conform0"
subnets = ["10.87.0.0/16"]
END
    start_daemon
    for _ in $(seq 200); do
        [ -S "$work/berth.sock" ] && break
        kill -0 "$daemon" 2>/dev/null || { cat "$work/daemon.log" >&2; exit 1; }
        sleep 0.05
    done
}
