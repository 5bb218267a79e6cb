#!/usr/bin/env bash
# Several Ray nodes on one machine, each in a network namespace of its own, so that a node can be killed or cut off.
#   nodes.sh up N            N nodes; node 0 is the head. Ends when all are there.
#   nodes.sh kill NODE       SIGKILL to all of a node's processes
#   nodes.sh cut NODE        its link goes down, its processes live on
#   nodes.sh start NODE      a node that was killed or cut off (not the head) joins again, as a new one
#   nodes.sh submit STAGE .. `atlas submit` within the head's namespace, where the dashboard is
#   nodes.sh exec CMD ..     a command within the head's namespace
#   nodes.sh down            all of it goes
# NODES_DIR: folder of the cluster's files and the name's source (default /tmp/atlas-nodes): one cluster a folder. It must
# be short: Ray's sockets lie in it, and their paths have 107 characters at most. NODES_CPUS: of each node (default 2);
# NODES_HEAD_CPUS: of the head, 0 where nothing is to run there but the driver (default as the others).
# Root is needed (ip netns). `atlas` and `ray` are those on PATH.
set -eEuo pipefail
DIR=${NODES_DIR:-/tmp/atlas-nodes}
ID=a$(printf %s "$DIR" | cksum | cut -d' ' -f1 | xargs printf %08x)  # names of devices have 15 characters at most
NET=10.$((16#${ID:1:2} % 250 + 1)).$((16#${ID:3:2}))
HEAD=$NET.1:6379
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$DIR/token RAY_worker_niceness=0 RAY_USAGE_STATS_ENABLED=0
# A lost node is noticed after 3 probes of 3 s, each a second after the last: 12 s.
export RAY_health_check_initial_delay_ms=5000 RAY_health_check_period_ms=1000
export RAY_health_check_timeout_ms=3000 RAY_health_check_failure_threshold=3
# The machine's name stands for its loopback in every namespace: torch's gloo would look for the others there.
export GLOO_SOCKET_IFNAME=eth0
unset RAY_ADDRESS

within() { ip netns exec "$ID-$1" "${@:2}"; }

node() {  # node I COMMAND: `ray start`, which Ray gives 30 s, too little on a busy machine
    local cpus=${NODES_CPUS:-2}
    (($1)) || cpus=${NODES_HEAD_CPUS:-$cpus}
    for _ in 1 2 3; do
        if within "$1" "${@:2}" --node-ip-address="$NET.$(($1 + 1))" --num-cpus="$cpus" \
            --disable-usage-stats >"$DIR/node$1.log" 2>&1 </dev/null; then return; fi
        end "$1"
    done
    cat "$DIR/node$1.log" >&2
    return 1
}

end() {  # end I: until the node has no process left
    local pids
    while pids=$(ip netns pids "$ID-$1" 2>/dev/null) && [ -n "$pids" ]; do
        kill -9 $pids 2>/dev/null || true
        sleep 0.1
    done
}

up() {
    [ ! -e "$DIR/token" ] || { echo "$DIR holds a cluster already: nodes.sh down" >&2; exit 2; }
    mkdir -p "$DIR"
    (umask 077; head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' >"$DIR/token")
    trap 'down' ERR
    ip netns add "$ID-net"  # the bridge lies in one too: nothing is seen from outside
    ip -n "$ID-net" link add bridge0 type bridge
    ip -n "$ID-net" link set bridge0 up
    for ((i = 0; i < $1; i++)); do
        ip netns add "$ID-$i"
        ip -n "$ID-$i" link set lo up
        ip link add eth0 netns "$ID-$i" type veth peer name "p$i" netns "$ID-net"
        ip -n "$ID-net" link set "p$i" master bridge0 up
        ip -n "$ID-$i" addr add "$NET.$((i + 1))/24" dev eth0
        if ((i == 0)); then
            ip -n "$ID-$i" link set eth0 up
            node 0 ray start --head --port=6379 --temp-dir="$DIR/ray" --dashboard-host=127.0.0.1 --dashboard-port=8265
        else
            start "$i"
        fi
    done
}

start() {  # start I: what is left of the node ends first
    end "$1"
    ip -n "$ID-$1" link set eth0 up
    node "$1" ray start --address="$HEAD"
}

down() {
    for name in $(ip netns list | cut -d' ' -f1 | grep "^$ID-" || true); do
        end "${name#"$ID-"}"
        ip netns del "$name"
    done
    rm -rf "$DIR"
}

case ${1:-} in
up) up "${2:-2}" ;;
down) down ;;
kill) end "$2" ;;
start) start "$2" ;;
cut) ip -n "$ID-$2" link set eth0 down ;;
# Ray would take a driver on another node for one of the head's: it finds the nodes of a machine by their processes
submit) exec ip netns exec "$ID-0" atlas submit "${@:2}" --driver-on-head --address http://127.0.0.1:8265 ;;
exec) exec ip netns exec "$ID-0" "${@:2}" ;;
*) sed -n '2,13s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
