# The network of the local clusters. Sourced, not run.
#
# A bridge for each site in one network namespace, which routes between them and does nothing else. The host's own
# network is not touched. What is between nodes of one site does not pass the router, so that a cut, a narrow line and a
# delay are between the sites only.

router_up() {
	exec 8>"$SLIPSTREAM_CLUSTERS_DIR/lock-$instance"
	flock 8
	if [[ ! -e /run/netns/$wan ]]; then
		ip netns add "$wan"
		ip -n "$wan" link set lo up
		in_wan sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0
	fi
	exec 8>&-
}

router_down() {
	[[ -e /run/netns/$wan ]] || return 0
	line_end
	ip netns del "$wan"
}

in_wan() { nsenter "--net=/run/netns/$wan" -- "$@"; }

# plug NODE: a namespace of its own with a cable to its site's bridge.
plug() {
	local node=$1 site=${1:0:1} n neighbour
	n=$instance-$node
	exec 8>"$SLIPSTREAM_CLUSTERS_DIR/lock-$instance"
	flock 8
	if ! ip -n "$wan" link show "site-$site" >/dev/null 2>&1; then
		ip -n "$wan" link add "site-$site" type bridge
		ip -n "$wan" addr add "$(router_address "$site")/24" dev "site-$site"
		ip -n "$wan" link set "site-$site" up
	fi
	ip netns add "$n"
	ip -n "$wan" link add "$node" type veth peer name eth0 netns "$n"
	ip -n "$wan" link set "$node" master "site-$site" up
	ip -n "$wan" route replace "$(pod_network "$node")" via "$(node_address "$node")"
	exec 8>&-
	ip -n "$n" link set lo up
	ip -n "$n" addr add "$(node_address "$node")/24" dev eth0
	ip -n "$n" link set eth0 up
	ip -n "$n" route add default via "$(router_address "$site")"
	for neighbour in 1 2 3 4 5 6 7 8 9; do
		[[ $site$neighbour == "$node" ]] ||
			ip -n "$n" route add "$(pod_network "$site$neighbour")" via "$(node_address "$site$neighbour")"
	done
}

unplug() {
	ip netns del "$instance-$1" 2>/dev/null || true
	# The namespace lives until its last process is gone; the cable would hold the name.
	ip -n "$wan" link del "$1" 2>/dev/null || true
}

# The line between the sites.

line() {
	[[ -e /run/netns/$wan ]] || die "there is no network: run hack/local-cluster.sh up"
	case ${1:-} in
	cut) in_wan sysctl -qw net.ipv4.ip_forward=0 ;; # packets vanish without an error
	heal) in_wan sysctl -qw net.ipv4.ip_forward=1 ;;
	rate) line_rate "${2:?bits per second as tc understands them, like 20mbit, or none}" ;;
	delay) line_delay "${2:?one way, like 25ms, or none}" ;;
	show)
		in_wan sysctl net.ipv4.ip_forward
		in_wan tc qdisc show
		in_wan ip rule show
		;;
	*) die "line cut|heal|rate RATE|delay TIME|show" ;;
	esac
}

# line_rate: a token bucket where packets leave the router into a site, so each direction has the rate to itself.
line_rate() {
	local site
	for site in $(all_sites); do
		in_wan tc qdisc del dev "site-$site" root 2>/dev/null || true
		[[ $1 == none ]] || in_wan tc qdisc add dev "site-$site" root tbf rate "$1" burst 64kb latency 200ms
	done
}

# line_delay: this has to do without netem, so what one site's bridge hands the router goes through a tunnel device, at
# whose other end a program holds every packet back for a while.
line_delay() {
	local site program
	line_end
	[[ $1 != none ]] || return 0
	program=$state/delayline
	[[ -x $program ]] || (cd "$here/../.." && CGO_ENABLED=0 go build -o "$program" ./test/cluster/delayline)
	in_wan setsid "$program" --device delay --delay "$1" --pid-file "$state/delayline.pid" \
		>"$state/delayline.log" 2>&1 </dev/null &
	for _ in $(seq 100); do
		[[ -e $state/delayline.pid ]] && break
		sleep 0.05
	done
	[[ -e $state/delayline.pid ]] || die "the delay line did not start: $(cat "$state/delayline.log")"
	in_wan sysctl -qw net.ipv4.conf.delay.rp_filter=0
	in_wan ip route replace default dev delay table 77
	for site in $(all_sites); do
		in_wan ip rule add iif "site-$site" lookup 77
	done
}

line_end() {
	local pid
	while in_wan ip rule del lookup 77 2>/dev/null; do :; done
	pid=$(cat "$state/delayline.pid" 2>/dev/null) || return 0
	if [[ $(readlink "/proc/$pid/exe" 2>/dev/null) == "$state/delayline"* ]]; then
		kill "$pid"
		for _ in $(seq 100); do
			[[ -d /proc/$pid ]] || break
			sleep 0.05
		done
	fi
	rm -f "$state/delayline.pid"
}
