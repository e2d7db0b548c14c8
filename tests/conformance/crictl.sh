#!/usr/bin/env bash
# Runs every command of crictl during the life of a pod, and queries the server with grpcurl, as an operator would.
#
# usage: crictl.sh TOOLS SOCKET FOLDER      called by tests/conformance/run, which has started a daemon and a registry
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
crictl events --output json >"$folder/events.json" 2>&1 &
events=$!
trap 'kill "$events" 2>/dev/null || true' EXIT
has "version" "RuntimeName:  berth" "$(crictl version)"
has "config" "unix://$socket" "$(crictl config --get runtime-endpoint)"
has "completion" "crictl" "$(crictl completion bash)"
has "runtime-config" "CGROUPFS" "$(crictl runtime-config)"
has "update-runtime-config" "" "$(crictl update-runtime-config --pod-cidr 10.87.0.0/16)"
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
is "exec over a session" "blue" "$(crictl exec "$container" sh -c 'echo $COLOUR')"
is "input of an exec" "through" "$(echo through | crictl exec --interactive "$container" cat)"
crictl update --memory 67108864 --cpu-share 512 "$container" >/dev/null
has "update" '"67108864"' "$(crictl inspect "$container" | grep memoryLimitInBytes)"
has "stats" "${container:0:13}" "$(crictl stats --id "$container")"
has "statsp" "${pod:0:13}" "$(crictl statsp --id "$pod")"
has "metricdescs" "container_memory_working_set_bytes" "$(crictl metricdescs)"
has "metricsp" "container_network_receive_bytes_total" "$(crictl metricsp)"
# Without CRIU on this host, the error says what to install.
checkpoint=$(crictl checkpoint --export "$folder/checkpoint.tar" "$container" 2>&1 || true)
[ -s "$folder/checkpoint.tar" ] || has "checkpoint" "install the package criu" "$checkpoint"
crictl stop --timeout 10 "$container" >/dev/null
is "exit code" "3" "$(crictl inspect -o go-template --template '{{.status.exitCode}}' "$container")"
is "logs" "started stopping" "$(crictl logs "$container" | xargs)"
crictl rm "$container" >/dev/null

# Long sessions: attach, port-forward, and a container of one command.
sed 's/"name": "shell"/"name": "echo"/; s/"command": .*/"command": ["sh", "-c", "read line; echo got $line; nc -l -p 7000 -e echo served"],/
    s/"log_path": "shell.log"/"log_path": "echo.log", "stdin": true/' "$folder/container.json" >"$folder/echo.json"
echo_id=$(crictl create "$pod" "$folder/echo.json" "$folder/pod.json")
crictl start "$echo_id" >/dev/null
is "attach" "got input" "$( (echo input; sleep 2) | timeout 10 "$tools/crictl" --config "$folder/crictl.yaml" attach --stdin "$echo_id" | head -1)"
crictl port-forward "$pod" 17000:7000 >"$folder/forward.log" 2>&1 &
forward=$!
for _ in $(seq 100); do
    grep -q "Forwarding from 127.0.0.1" "$folder/forward.log" && break
    sleep 0.1
done
is "port-forward" "served" "$(timeout 10 bash -c 'cat </dev/tcp/127.0.0.1/17000')"
kill "$forward"
wait "$forward" || true
crictl rm --force "$echo_id" >/dev/null
sed 's/"name": "web", "namespace": "default", "uid": "crictl-web"/"name": "once", "namespace": "default", "uid": "crictl-once"/' \
    "$folder/pod.json" >"$folder/once-pod.json"
once=$(crictl run --no-pull "$folder/container.json" "$folder/once-pod.json")
is "run" "CONTAINER_RUNNING" "$(crictl inspect -o go-template --template '{{.status.state}}' "$once")"
once_pod=$(crictl pods --quiet --no-trunc --name once)
crictl rmp --force "$once_pod" >/dev/null

crictl stopp "$pod" >/dev/null
is "pod state" "SANDBOX_NOTREADY" "$(crictl inspectp -o go-template --template '{{.status.state}}' "$pod")"
crictl rmp "$pod" >/dev/null
crictl rmi "$image" >/dev/null
is "pods left" "" "$(crictl pods --quiet)"
is "containers left" "" "$(crictl ps --all --quiet)"
is "images left" "" "$(crictl images --quiet)"

kill "$events"
wait "$events" 2>/dev/null || true
for event in CONTAINER_CREATED_EVENT CONTAINER_STARTED_EVENT CONTAINER_STOPPED_EVENT CONTAINER_DELETED_EVENT; do
    has "events" "$event" "$(cat "$folder/events.json")"
done

echo "== grpcurl"
has "list" "runtime.v1.RuntimeService" "$(grpcurl list)"
has "describe" "rpc RunPodSandbox" "$(grpcurl describe runtime.v1.RuntimeService)"
has "Version" '"runtimeApiVersion": "v1"' "$(grpcurl runtime.v1.RuntimeService/Version)"
has "health" '"SERVING"' "$(grpcurl grpc.health.v1.Health/Check)"
