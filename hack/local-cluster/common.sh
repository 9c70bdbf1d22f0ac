# What the scripts of the local clusters share. Sourced, not run.
#
# Words: a site is a Kubernetes cluster, named by a letter (a, b); a node is a letter and a number (a1, a2). The first
# node of a site runs its control plane. An instance is everything that one `local-cluster.sh up` makes; several can run
# beside each other under different names.
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

export SLIPSTREAM_CLUSTERS=${SLIPSTREAM_CLUSTERS:-slip}
export SLIPSTREAM_CLUSTERS_DIR=${SLIPSTREAM_CLUSTERS_DIR:-/var/tmp/slipstream-clusters}
instance=$SLIPSTREAM_CLUSTERS
state=$SLIPSTREAM_CLUSTERS_DIR/$instance
wan=$instance-wan # the network namespace between the sites

die() {
	echo "local-cluster: $*" >&2
	exit 1
}

[[ $instance =~ ^[a-z][a-z0-9]{0,7}$ ]] || die \
	"SLIPSTREAM_CLUSTERS is \"$instance\": want at most 8 small letters and digits"

# The parts of a node's name. Site a is 1, site b is 2, and so on.
check_site() { [[ $1 =~ ^[a-i]$ ]] || die "there is no site \"$1\": sites are the letters a to i"; }
check_node() { [[ $1 =~ ^[a-i][1-9]$ ]] || die "there is no node \"$1\": nodes are called like a1 or b2"; }
site_number() { printf '%d' $(($(printf '%d' "'$1") - 96)); }

# Addresses: of a node, of the router as the site sees it, and the nodes' pods.
node_address() { echo "10.77.$(site_number "${1:0:1}").${1:1}"; }
router_address() { echo "10.77.$(site_number "$1").254"; }
pod_network() { echo "10.88.$(site_number "${1:0:1}")${1:1}.0/24"; }
api_address() { node_address "${1:0:1}1"; }

# nodes_of SITE: the nodes that have state, in order.
nodes_of() { (cd "$state" 2>/dev/null && compgen -G "$1[1-9]") || true; }
# all_sites: sites that have a node.
all_sites() { (cd "$state" 2>/dev/null && compgen -G '[a-i][1-9]') | cut -c1 | sort -u || true; }

# running_init NODE prints the process that is the node's process 1, if it runs.
running_init() {
	local pid
	pid=$(cat "$state/$1/init.pid" 2>/dev/null) || return 1
	# Process ids are used again: the command line says whether it is still this one.
	{ tr '\0' ' ' <"/proc/$pid/cmdline"; } 2>/dev/null | grep -q "init\.sh $instance $1 " || return 1
	echo "$pid"
}

# Control groups. Kubernetes' own programs want version 1's controllers here, each below a group of the node's own.
controllers="cpu cpuacct cpuset memory devices freezer blkio pids systemd"

# own_cgroup CONTROLLER: the group of this process.
own_cgroup() {
	awk -F: -v c="$1" '{
		n = split($2, names, ",")
		for (i = 1; i <= n; i++) if (names[i] == c || names[i] == "name=" c) { print $3; exit }
	}' \
		/proc/self/cgroup
}

# node_cgroup NODE CONTROLLER: as it was when the node was started.
node_cgroup() { awk -v c="$2" '$1 == c { print $2 }' "$state/$1/cgroups"; }

make_cgroups() {
	local controller parent
	: >"$state/$1/cgroups"
	for controller in $controllers; do
		[[ -d /sys/fs/cgroup/$controller ]] ||
			die "no version 1 controller \"$controller\" in /sys/fs/cgroup; on this machine use make e2e-kind with Docker"
		parent=$(own_cgroup "$controller")
		echo "$controller /sys/fs/cgroup/$controller${parent%/}/$instance-$1" >>"$state/$1/cgroups"
		mkdir -p "$(node_cgroup "$1" "$controller")"
	done
	# A cpuset takes no process before it has processors and memory.
	local set
	set=$(node_cgroup "$1" cpuset)
	cat "${set%/*}/cpuset.cpus" >"$set/cpuset.cpus"
	cat "${set%/*}/cpuset.mems" >"$set/cpuset.mems"
}

# join_cgroups NODE moves the calling (sub)shell.
join_cgroups() {
	local controller
	for controller in $controllers; do echo "$BASHPID" >"$(node_cgroup "$1" "$controller")/cgroup.procs"; done
}

remove_cgroups() {
	local controller group
	[[ -e $state/$1/cgroups ]] || return 0
	for controller in $controllers; do
		group=$(node_cgroup "$1" "$controller")
		[[ -z $group || ! -d $group ]] || find "$group" -depth -type d -exec rmdir {} + 2>/dev/null || true
	done
}

# enter NODE COMMAND...: runs in the node's namespaces and control groups.
enter() {
	local node=$1 init
	shift
	init=$(running_init "$node") || die "node $node does not run"
	(
		join_cgroups "$node"
		KUBECONFIG=$state/${node:0:1}.kubeconfig exec nsenter -t "$init" -m -n -p -u -i -C -- "$@"
	)
}
