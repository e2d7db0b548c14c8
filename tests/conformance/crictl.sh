#!/usr/bin/env bash
# Drives a pod through its whole life with crictl, and asks the server with grpcurl, as an operator would.
#
# usage: crictl.sh TOOLS SOCKET FOLDER      called by tests/conformance/run, beside its daemon and registry
set -eu
tools=$1 socket=$2 folder=$3
image=registry.k8s.io/e2e-test-images/busybox:1.29-2

crictl() { "$tools/crictl" --config "$folder/crictl.yaml" "$@"; }
grpcurl() { "$tools/grpcurl" -plaintext -unix "$socket" "$@"; }

is() { # what, expected, found
    [ "$2" = "$3" ] || { echo "crictl.sh: $1: expected \"$2\", found \"$3\"" >&2; exit 1; }
    echo "  $1: $3"
}
has() { # what, part, text
    case $3 in
    *"$2"*) echo "  $1: has \"$2\"" ;;
    *) echo "crictl.sh: $1: \"$2\" is not in: $3" >&2; exit 1 ;;
    esac
}

mkdir -p "$folder/logs"
cat >"$folder/crictl.yaml" <<END
runtime-endpoint: unix://$socket
image-endpoint: unix://$socket
timeout: 10
END
cat >"$folder/pod.json" <<END
{ "metadata": { "name": "web", "namespace": "default", "uid": "crictl-web", "attempt": 1 },
  "hostname": "web", "log_directory": "$folder/logs", "labels": { "app": "web" },
  "dns_config": { "servers": ["10.1.2.3"], "searches": ["svc.local"] }, "linux": {} }
END
cat >"$folder/container.json" <<END
{ "metadata": { "name": "shell" }, "image": { "image": "$image" },
  "command": ["sh", "-c", "echo started; trap 'echo stopping; exit 3' TERM; while :; do sleep 0.1; done"],
  "envs": [{ "key": "COLOUR", "value": "blue" }], "log_path": "shell.log", "linux": {} }
END

echo "== crictl"
has "version" "RuntimeName:  berth" "$(crictl version)"
has "info" '"type": "NetworkReady"' "$(crictl info)"
has "pull" "up to date" "$(crictl pull "$image")"
has "images" "busybox" "$(crictl images)"
has "inspecti" '"repoTags"' "$(crictl inspecti "$image")"
has "imagefsinfo" '"mountpoint"' "$(crictl imagefsinfo)"
pod=$(crictl runp "$folder/pod.json")
container=$(crictl create "$pod" "$folder/container.json" "$folder/pod.json")
is "state" "CONTAINER_CREATED" "$(crictl inspect -o go-template --template '{{.status.state}}' "$container")"
crictl start "$container" >/dev/null
is "ps" "$container" "$(crictl ps --quiet --no-trunc)"
is "pods by label" "$pod" "$(crictl pods --quiet --no-trunc --label app=web)"
is "exec" "blue" "$(crictl exec --sync "$container" sh -c 'echo $COLOUR')"
is "hostname" "web" "$(crictl exec --sync "$container" hostname)"
is "resolv.conf" "search svc.local nameserver 10.1.2.3" "$(crictl exec --sync "$container" cat /etc/resolv.conf | xargs)"
address=$(crictl inspectp -o go-template --template '{{.status.network.ip}}' "$pod")
has "ip addr" "inet addr:$address" "$(crictl exec --sync "$container" ifconfig eth0)"
pid=$(crictl inspect -o go-template --template '{{.info.pid}}' "$container")
has "pid" "sh" "$(tr '\0' ' ' <"/proc/$pid/cmdline")"
has "runtime spec" '"namespaces"' "$(crictl inspect "$container")"
has "exit code of exec" "7" "$(crictl exec --sync "$container" sh -c 'exit 7' 2>&1 || true)"
crictl stop --timeout 10 "$container" >/dev/null
is "exit code" "3" "$(crictl inspect -o go-template --template '{{.status.exitCode}}' "$container")"
is "logs" "started stopping" "$(crictl logs "$container" | xargs)"
crictl rm "$container" >/dev/null
crictl stopp "$pod" >/dev/null
is "pod state" "SANDBOX_NOTREADY" "$(crictl inspectp -o go-template --template '{{.status.state}}' "$pod")"
crictl rmp "$pod" >/dev/null
crictl rmi "$image" >/dev/null
is "pods left" "" "$(crictl pods --quiet)"
is "containers left" "" "$(crictl ps --all --quiet)"
is "images left" "" "$(crictl images --quiet)"

echo "== grpcurl"
has "list" "runtime.v1.RuntimeService" "$(grpcurl list)"
has "describe" "rpc RunPodSandbox" "$(grpcurl describe runtime.v1.RuntimeService)"
has "Version" '"runtimeApiVersion": "v1"' "$(grpcurl runtime.v1.RuntimeService/Version)"
has "health" '"SERVING"' "$(grpcurl grpc.health.v1.Health/Check)"
