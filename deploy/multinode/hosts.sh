#!/usr/bin/env bash
# Simulated hosts on one machine, to try a cluster before there is one: network namespaces on a bridge.
#
#   hosts.sh up N [RATE]     hosts 0 to N-1 with the addresses 10.78.0.10, 10.78.0.11, ...; RATE, such
#                            as 10gbit, is the most that each can send
#   hosts.sh on I COMMAND    runs a command on host I
#   hosts.sh down            ends what runs on the hosts, and removes them
#
# Needs root and iproute2.  All hosts share the machine's cores, memory and files.
set -euo pipefail

usage() { sed -n '2,10s/^# \{0,1\}//p' "$0" >&2; exit 2; }
name() { echo "winnow-host$1"; }
hosts() { ip netns list | sed -nE 's/^(winnow-host[0-9]+).*/\1/p'; }

up() {
    local n=$1 rate=${2:-} i
    [ -z "$(hosts)" ] || { echo 'hosts.sh: there are hosts already; "hosts.sh down" removes them' >&2; exit 1; }
    ip link add winnow-br0 type bridge
    ip link set winnow-br0 up
    for ((i = 0; i < n; i++)); do
        ip netns add "$(name "$i")"
        ip link add "winnow-v$i" type veth peer name eth0 netns "$(name "$i")"
        ip link set "winnow-v$i" master winnow-br0 up
        ip -n "$(name "$i")" address add "10.78.0.$((10 + i))/24" dev eth0
        ip -n "$(name "$i")" link set lo up
        ip -n "$(name "$i")" link set eth0 up
        [ -z "$rate" ] || ip netns exec "$(name "$i")" tc qdisc add dev eth0 root tbf rate "$rate" \
            burst 1mb latency 50ms
    done
}

down() {
    local host pids
    for host in $(hosts); do
        pids=$(ip netns pids "$host")
        # shellcheck disable=SC2086 # one argument each
        [ -z "$pids" ] || kill $pids 2>/dev/null || true
        ip netns delete "$host"
    done
    ip link delete winnow-br0 2>/dev/null || true
}

case ${1:-} in
    up) [ $# -ge 2 ] || usage; up "$2" "${3:-}" ;;
    on) [ $# -ge 3 ] || usage; host=$(name "$2"); shift 2; exec ip netns exec "$host" "$@" ;;
    down) down ;;
    *) usage ;;
esac
