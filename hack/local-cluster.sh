#!/usr/bin/env bash
# Real Kubernetes clusters on one machine, without Docker, systemd or an image registry: two sites, joined by a line
# that can be cut, narrowed and delayed. As root on a Debian machine with version 1 control groups.
#
#   local-cluster.sh up [SITE[:NODES]...]     start sites (default a:2 b:1), with the images of $SLIPSTREAM_IMAGES
#   local-cluster.sh down [SITE...]           stop and remove; KEEP=1 kills and keeps the disks, `up` starts them again
#   local-cluster.sh kubectl SITE ARGS...     kubectl at a site
#   local-cluster.sh helm SITE ARGS...        helm at a site
#   local-cluster.sh kubeconfig SITE          the path of its kubeconfig, good in the clusters' network
#   local-cluster.sh env                      BIN, WAN and STATE: the programs, the network namespace of wan, the state
#   local-cluster.sh wan COMMAND...           run in the network between the sites, which reaches nodes, pods and API
#                                             servers
#   local-cluster.sh exec NODE COMMAND...     run inside a node
#   local-cluster.sh load TAR...              import images into all nodes
#   local-cluster.sh service NODE start|stop|kill|show NAME
#                                             kubelet, proxy, containerd; on a1 and b1 apiserver, etcd, scheduler,
#                                             controller-manager
#   local-cluster.sh reboot NODE              kill a node and start it again
#   local-cluster.sh line cut|heal|rate RATE|delay TIME|show
#                                             the line between the sites: RATE as in tc, TIME one way as in Go, or none
#   local-cluster.sh memory                   of all processes, by node
#   local-cluster.sh build                    build the programs, which `up` does too
#
# Environment: SLIPSTREAM_CLUSTERS names an instance (default slip); SLIPSTREAM_CLUSTERS_DIR holds its state (default
# /var/tmp/slipstream-clusters); SLIPSTREAM_POOL_SIZE gives each node's /var/lib/slipstream an XFS of its own, as in
# "a1=4G a2=8G 6G"; SLIPSTREAM_CLUSTER_CACHE as in local-cluster/build.sh.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/local-cluster/common.sh"
for part in network config loops node; do source "$here/$part.sh"; done

up() {
	local argument site count n node nodes=() began=$SECONDS
	[[ $# -gt 0 ]] || set -- a:2 b:1
	for argument; do
		check_site "${argument%%:*}"
		[[ $argument =~ ^[a-i](:[1-9])?$ ]] || die "up: \"$argument\": want a site and a number of nodes, like a:2"
	done
	"$here/build.sh" kubernetes containerd cni etcd >/dev/null
	mkdir -p "$state"
	router_up
	for argument; do
		site=${argument%%:*}
		site_authority "$site"
		count=$(($(nodes_of "$site" | wc -l)))
		[[ $argument != *:* ]] || count=${argument#*:}
		for ((n = 1; n <= (count > 0 ? count : 1); n++)); do nodes+=("$site$n"); done
	done
	for node in "${nodes[@]}"; do start_node "$node"; done
	for node in "${nodes[@]}"; do wait_node "$node"; done
	for node in "${nodes[@]}"; do cat "$state/$node/timing"; done
	echo "ready after $((SECONDS - began)) s: ${nodes[*]}"
}

down() {
	local site node
	# shellcheck disable=SC2046
	[[ $# -gt 0 ]] || set -- $(all_sites)
	for site; do
		check_site "$site"
		for node in $(nodes_of "$site"); do
			if [[ -n ${KEEP:-} ]]; then kill_node "$node"; else remove_node "$node"; fi
		done
		[[ -n ${KEEP:-} ]] || rm -rf "$state/$site.pki" "$state/$site.kubeconfig"
		[[ ! -e /run/netns/$wan ]] || ip -n "$wan" link del "site-$site" 2>/dev/null || true
	done
	if [[ -z $(all_sites) ]]; then
		router_down
		rm -rf "$state" "$SLIPSTREAM_CLUSTERS_DIR/lock-$instance"
		rmdir "$SLIPSTREAM_CLUSTERS_DIR" 2>/dev/null || true
	fi
}

load() {
	local archive site node
	for archive; do [[ -e $archive ]] || die "there is no $archive"; done
	for site in $(all_sites); do
		for node in $(nodes_of "$site"); do
			for archive; do enter "$node" "$bin/ctr" -n k8s.io images import "$(realpath "$archive")" >/dev/null \
				2>"$state/$node/log/load.log" ||
				die "load $archive into $node: $(tail -1 "$state/$node/log/load.log")"; done
		done
	done
}

memory() {
	local site node pid
	for site in $(all_sites); do
		for node in $(nodes_of "$site"); do
			for pid in $(node_processes "$node"); do
				awk -v n="$(cat "/proc/$pid/comm" 2>/dev/null)" '/^Pss:/ { print $2, n }' "/proc/$pid/smaps_rollup" 2>/dev/null ||
					true
			done | sort -rn | awk -v node="$node" '{ all += $1; printf "%s %6.1f MiB  %s\n", node, $1 / 1024, $2 }
				END { printf "%s %6.1f MiB in %d processes\n", node, all / 1024, NR }'
		done
	done
}

verb=${1:-}
[[ $# -eq 0 ]] || shift
case $verb in
up | down | exec | load | service | reboot | line | wan | memory)
	[[ $EUID -eq 0 ]] || die "$verb needs root"
	;;
esac
case $verb in
build) exec "$here/build.sh" ;;
"" | help | -h | --help)
	awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$0"
	[[ $verb ]] || exit 2
	exit
	;;
esac
bin=$("$here/build.sh" --print)
case $verb in
up) up "$@" ;;
down) down "$@" ;;
kubeconfig)
	check_site "${1:?site}"
	echo "$state/$1.kubeconfig"
	;;
kubectl | helm)
	check_site "${1:?site}"
	[[ $verb != helm ]] || "$here/build.sh" helm >/dev/null
	KUBECONFIG=$state/$1.kubeconfig in_wan "$bin/$verb" "${@:2}"
	;;
env) printf 'BIN=%s\nWAN=/run/netns/%s\nSTATE=%s\n' "$bin" "$wan" "$state" ;;
wan) in_wan "$@" ;;
exec)
	check_node "${1:?node}"
	enter "$@"
	;;
load) load "$@" ;;
service)
	check_node "${1:?node}"
	# With the PATH that init.sh has.
	enter "$1" env "PATH=$bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" bash "$here/service.sh" \
		"$state/$1" "${2:?start, stop, kill or show}" "${3:?name of the service}"
	;;
reboot)
	check_node "${1:?node}"
	kill_node "$1"
	start_node "$1"
	wait_node "$1"
	;;
line) line "$@" ;;
memory) memory ;;
*) die "\"$verb\"? See hack/local-cluster.sh help" ;;
esac
