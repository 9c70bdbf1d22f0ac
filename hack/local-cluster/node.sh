# Starting, stopping and removing nodes. Sourced, not run.
#
# A node is a set of namespaces - network, mount, PID, UTS, IPC, control groups - with a kubelet and a containerd in it,
# and a site's first node has the control plane too. Killing its process 1 ends all of it, containers included, as a
# power failure would; what the machine's page cache has is not lost, so it is no test of that.

# start_node NODE returns when the process 1 runs.
start_node() {
	local node=$1 dir=$state/$1 unshared child=""
	! running_init "$node" >/dev/null || die "node $node runs already"
	mkdir -p "$dir"
	rm -f "$dir/ready" "$dir/init.pid"
	node_config "$node"
	write_services "$node"
	if [[ -n ${SLIPSTREAM_POOL_SIZE:-} && ! -e $dir/pool.img ]]; then
		truncate -s "$(pool_size "$node")" "$dir/pool.img.new"
		mkfs.xfs -q -m reflink=1 "$dir/pool.img.new"
		mv "$dir/pool.img.new" "$dir/pool.img"
	fi
	plug "$node"
	make_cgroups "$node"
	(
		join_cgroups "$node"
		cd /
		exec setsid nsenter "--net=/run/netns/$instance-$node" unshare --mount --pid --fork --kill-child --cgroup --uts \
			--ipc \
			--mount-proc --propagation private bash "$here/init.sh" "$instance" "$node" "$bin"
	) >"$dir/log/init.log" 2>&1 </dev/null &
	unshared=$!
	for _ in $(seq 200); do
		# The first child that is seen may be a helper of the shell that became unshare: the command line tells.
		child=$(cat "/proc/$unshared/task/$unshared/children" 2>/dev/null | tr -d ' ') || child=""
		if [[ -n $child ]] && { tr '\0' ' ' <"/proc/$child/cmdline"; } 2>/dev/null | grep -q "init\.sh $instance $node "; then
			if grep -qa '^unshare' "/proc/$unshared/cmdline"; then
				echo "$child" >"$dir/init.pid"
				return
			fi
		fi
		sleep 0.05
	done
	die "node $node did not start: $(cat "$dir/log/init.log")"
}

# pool_size NODE: SLIPSTREAM_POOL_SIZE is a size for all nodes, or sizes by node, like "a1=4G a2=8G 6G".
pool_size() {
	local word size=""
	for word in $SLIPSTREAM_POOL_SIZE; do
		case $word in
		"$1="*) size=${word#*=} && break ;;
		*=*) ;;
		*) size=$word ;;
		esac
	done
	echo "${size:?SLIPSTREAM_POOL_SIZE says nothing of $1}"
}

# wait_node NODE waits until it is Ready and has its images.
wait_node() {
	local node=$1 dir=$state/$1
	for _ in $(seq 900); do
		[[ ! -e $dir/ready ]] || return 0
		running_init "$node" >/dev/null || die "node $node died: $(tail -5 "$dir/log/init.log")"
		sleep 0.2
	done
	die "node $node is not ready after 3 minutes; its logs are in $dir/log"
}

# node_processes NODE: all of them, by the node's control group.
node_processes() {
	local group
	group=$(node_cgroup "$1" pids)
	[[ ! -d $group ]] || find "$group" -name cgroup.procs -exec cat {} + 2>/dev/null || true
}

# kill_node NODE ends it at once and keeps its disks.
kill_node() {
	local node=$1 dir=$state/$1 init mounted="" name
	if init=$(running_init "$node"); then
		# Loop devices are the machine's and outlive the node. Which are its own can be seen only while it lives.
		# shellcheck disable=SC2046
		mounted=$(file_systems "$init" $(node_processes "$node"))
		kill -KILL "$init"
		for _ in $(seq 300); do
			[[ -d /proc/$init ]] || break
			sleep 0.1
		done
		[[ ! -d /proc/$init ]] || die "node $node, process $init, does not die"
	fi
	[[ ! -e $dir/cgroups ]] || wait_until_empty "$node"
	unplug "$node"
	# shellcheck disable=SC2086
	detach_loops_on $mounted
	# The pool's own device goes away with the last user of the file system on it.
	if [[ -e $dir/pool.img ]]; then
		for _ in $(seq 100); do
			[[ -n $(losetup -nO NAME -j "$dir/pool.img") ]] || break
			sleep 0.1
		done
		name=$(losetup -nO NAME,BACK-FILE -j "$dir/pool.img")
		[[ -z $name ]] || die "node $node is gone but its pool is still in use: $name"
	fi
	remove_cgroups "$node"
	rm -f "$dir/init.pid" "$dir/ready" "$dir/cgroups"
}

# wait_until_empty NODE: processes that waited for a disk end a little later than the process 1.
wait_until_empty() {
	for _ in $(seq 300); do
		[[ -n $(node_processes "$1") ]] || return 0
		sleep 0.1
	done
	die "node $1 has processes left: $(node_processes "$1" | tr '\n' ' ')"
}

remove_node() {
	kill_node "$1"
	rm -rf --one-file-system "${state:?}/$1"
}
