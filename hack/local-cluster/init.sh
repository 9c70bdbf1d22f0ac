#!/usr/bin/env bash
# Process 1 of a node, started by node.sh in fresh namespaces: `init.sh INSTANCE NODE BIN`. Mounts what the node has of
# its own, starts its programs and reaps. When it dies, the kernel ends everything in the node.
set -euo pipefail

main() {
	local bin=$3
	source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
	local node=$2 dir=$state/$2 began
	began=$(date +%s%3N)
	export PATH="$bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" KUBECONFIG=$state/${2:0:1}.kubeconfig \
		HOME=/root
	stamp() { printf '%6d ms  %s: %s\n' $(($(date +%s%3N) - began)) "$node" "$1" >>"$dir/timing"; }
	: >"$dir/timing"

	mounts
	hostname "$node"
	sysctl -qw net.ipv4.ip_forward=1
	rm -f "$dir"/run/*.pid

	local service
	start() { for service; do bash "$here/service.sh" "$dir" start "$service"; done; }
	[[ ${node:1} != 1 ]] || start etcd
	start containerd
	import &
	local import=$!
	if [[ ${node:1} == 1 ]]; then
		start apiserver
		until kubectl get --raw /readyz >/dev/null 2>&1; do sleep 0.2; done
		stamp "API server ready"
		start controller-manager scheduler
		kubectl create clusterrolebinding local-node-proxier --clusterrole=system:node-proxier --user=system:kube-proxy \
			>/dev/null 2>&1 || true
	else
		until kubectl get --raw /readyz >/dev/null 2>&1; do sleep 0.5; done
	fi
	start kubelet proxy
	until kubectl wait --for=condition=Ready "node/$node" --timeout=60s >/dev/null 2>&1; do sleep 0.2; done
	stamp "node Ready"
	until kubectl get serviceaccount default >/dev/null 2>&1; do sleep 0.2; done
	wait "$import" || stamp "importing images failed, see log/import.log"
	touch "$dir/ready"
	while :; do
		wait -n || true
		sleep 1
	done
}

# mounts: the paths are the canonical ones, because drivers' manifests have them, but what is there is the node's own.
mounts() {
	local controller d
	mount -t sysfs sysfs /sys # shows this network namespace
	mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup
	for controller in $controllers; do
		mkdir "/sys/fs/cgroup/$controller"
		if [[ $controller == systemd ]]; then
			# The kubelet insists on the named hierarchy, systemd or not.
			mount -t cgroup -o none,name=systemd cgroup /sys/fs/cgroup/systemd
		else
			mount -t cgroup -o "$controller" cgroup "/sys/fs/cgroup/$controller"
		fi
	done
	mount -t tmpfs -o mode=755 tmpfs /run
	# Directories that are made below /var/lib and /etc are not the host's.
	for d in etc var/lib; do
		mkdir -p "$dir/root/$d" "$dir/root/.work/$d"
		mount -t overlay -o "lowerdir=/$d,upperdir=$dir/root/$d,workdir=$dir/root/.work/$d" overlay "/$d"
	done
	for d in kubelet containerd slipstream; do
		mkdir -p "$dir/lib/$d" "/var/lib/$d"
		mount --bind "$dir/lib/$d" "/var/lib/$d"
	done
	# A disk of its own for the driver: with a size that the scheduler can tell from another node's, and with reflinks.
	[[ ! -e $dir/pool.img ]] || mount -o loop "$dir/pool.img" /var/lib/slipstream
	mkdir -p "$dir/lib/log"
	mount --bind "$dir/lib/log" /var/log
	# No name server: a lookup fails at once instead of waiting for the host's. Nodes know their own names.
	rm -f /etc/resolv.conf
	: >/etc/resolv.conf
	printf '127.0.0.1 localhost\n%s %s\n' "$(node_address "$node")" "$node" >/etc/hosts
	# The kubelet sets these, and they are the whole machine's. It gets files to write to.
	mkdir -p /run/sysctl
	local file value
	while read -r file value; do
		echo "$value" >"/run/sysctl/${file//\//_}"
		mount --bind "/run/sysctl/${file//\//_}" "/proc/sys/$file"
	done <<-Y
		vm/overcommit_memory 1
		vm/panic_on_oom 0
		kernel/panic 10
		kernel/panic_on_oops 1
		kernel/keys/root_maxkeys 1000000
		kernel/keys/root_maxbytes 25000000
	Y
	mount --make-rshared /
}

# import: images that this node does not have yet. It is mostly hashing, so it runs beside the start of the rest.
import() {
	local archive mark
	until ctr version >/dev/null 2>&1; do sleep 0.1; done
	mkdir -p "$dir/imported"
	for archive in ${SLIPSTREAM_IMAGES:+"$SLIPSTREAM_IMAGES"/*.tar}; do
		mark=$dir/imported/${archive##*/}
		if [[ -e $archive && ! $mark -nt $archive ]]; then
			ctr -n k8s.io images import "$archive" >>"$dir/log/import.log" 2>&1
			touch "$mark"
		fi
	done
	stamp "images imported"
}

# In a function, and ended by exit: bash reads a script as it runs, and this file may be edited meanwhile.
main "$@"
exit
