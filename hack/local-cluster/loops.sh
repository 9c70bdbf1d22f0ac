# shellcheck shell=bash
# Loop devices of nodes that are namespaces: they are the machine's and outlive the node. Sourced, not run.

# file_systems PID...: device numbers of what is mounted in the namespaces of processes and not on the host.
file_systems() {
	local pid
	for pid; do cat "/proc/$pid/mountinfo" 2>/dev/null || true; done | awk '{ print $3 }' | sort -u |
		grep -vxFf <(awk '{ print $3 }' /proc/self/mountinfo) || true
}

# loops_on DEVICE-NUMBER...: loop devices with a backing file on these file systems, and loop devices on those devices,
# which is how a kubelet holds block volumes; the upper ones first.
loops_on() {
	local lower upper name
	lower=$(losetup -nO NAME,BACK-MAJ:MIN | awk -v all=" $* " 'index(all, " " $2 " ") { print $1 }')
	for name in $lower; do
		upper=$(losetup -nO NAME,BACK-INO,BACK-MAJ:MIN |
			awk -v i="$(stat -c %i "$name")" -v d="$(findmnt -nro MAJ:MIN -T /dev)" '$2 == i && $3 == d { print $1 }')
		echo "$upper $name"
	done
}

# detach_loops_on DEVICE-NUMBER... detaches them. What they were of is gone, so that some may be gone with it.
detach_loops_on() {
	local name
	for name in $(loops_on "$@"); do losetup -d "$name" 2>/dev/null || true; done
}
