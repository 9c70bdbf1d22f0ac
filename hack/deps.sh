#!/usr/bin/env bash
# Makes sure that the programs a task runs are there: `hack/deps.sh SET...` with the sets below.
#
# On Debian and its children, as root, missing packages are installed by apt-get. Elsewhere the missing programs are
# listed and the exit status is 1. With everything in place nothing is run but a look at the PATH.
set -euo pipefail

usage="usage: hack/deps.sh build|test|pages|race|generate|demo|demo-postgres|bench-quick|bench|images|cluster ..."

# need PROGRAM PACKAGE: PACKAGE is Debian's name.
missing_programs=()
missing_packages=()
need() {
	local path
	path=$(PATH="$PATH:/usr/sbin:/sbin" command -v "$1" 2>/dev/null || true)
	if [[ -z $path ]]; then
		missing_programs+=("$1")
		missing_packages+=("$2")
	fi
}

# PostgreSQL's server programs are not on the PATH on Debian: one directory per version.
need_postgres() {
	local dir
	for dir in /usr/lib/postgresql/*/bin; do
		if [[ -x $dir/initdb && -x $dir/postgres ]]; then
			return
		fi
	done
	if command -v initdb >/dev/null && command -v postgres >/dev/null; then
		return
	fi
	missing_programs+=(initdb postgres)
	missing_packages+=(postgresql)
}

need_filesystems() {
	need mkfs.ext4 e2fsprogs
	need mkfs.xfs xfsprogs
	need xfs_growfs xfsprogs
	need blkid util-linux
	need losetup mount
	need mount mount
}

[[ $# -gt 0 ]] || { echo "$usage" >&2; exit 2; }
for set in "$@"; do
	case $set in
	build) need go golang ;;
	test)
		need go golang
		need_filesystems
		need fio fio
		need_postgres
		;;
	pages)
		need go golang
		need chromium chromium
		;;
	race)
		need gcc gcc
		[[ -e /usr/include/stdlib.h ]] || { missing_programs+=("C library headers"); missing_packages+=(libc6-dev); }
		;;
	generate)
		need protoc protobuf-compiler
		if [[ ! -e /usr/include/google/protobuf/descriptor.proto ]]; then
			missing_programs+=("protobuf's own .proto files")
			missing_packages+=(libprotobuf-dev)
		fi
		;;
	demo)
		need go golang
		need_filesystems
		;;
	demo-postgres)
		need_postgres
		;;
	bench-quick)
		need go golang
		need_filesystems
		need fio fio
		need_postgres
		;;
	bench)
		need go golang
		need_filesystems
		need fio fio
		need_postgres
		need qemu-storage-daemon qemu-system-common
		need ip iproute2
		need tc iproute2
		need strace strace
		need mariadbd mariadb-server-core
		need mariadb mariadb-client-core
		need sysbench sysbench
		;;
	images)
		need go golang
		need_filesystems
		need mkfs.ext4 e2fsprogs
		;;
	cluster)
		need go golang
		need_filesystems
		need runc runc
		need ip iproute2
		need tc iproute2
		need iptables iptables
		need openssl openssl
		need jq jq
		need busybox busybox-static
		need curl curl
		;;
	*)
		echo "hack/deps.sh: unknown set \"$set\"; $usage" >&2
		exit 2
		;;
	esac
done

[[ ${#missing_programs[@]} -gt 0 ]] || exit 0

packages=()
while IFS= read -r package; do packages+=("$package"); done < <(printf '%s\n' "${missing_packages[@]}" | sort -u)

explain() {
	{
		echo "hack/deps.sh: missing: ${missing_programs[*]}"
		echo "  $1"
		echo "  Debian's packages are: ${packages[*]}"
	} >&2
	exit 1
}
command -v apt-get >/dev/null || explain "this is not a Debian system: install them by hand"
[[ $EUID -eq 0 ]] || explain "run 'sudo hack/deps.sh $*' to install them"
for package in "${packages[@]}"; do
	# Debian's Go is older than go.mod asks for, so installing it would only hide the problem.
	[[ $package != golang ]] || explain "install Go from https://go.dev/dl/, the version in go.mod or newer"
done

# Installing Debian's PostgreSQL creates a cluster and starts it. It is not wanted: this file, which is there for
# the time of the installation only, prevents that.
dropin=/etc/postgresql-common/createcluster.d/slipstream-deps.conf
mkdir -p "${dropin%/*}"
trap 'rm -f "$dropin"' EXIT
echo "create_main_cluster = false" >"$dropin"

echo "hack/deps.sh: installing ${packages[*]}"
export DEBIAN_FRONTEND=noninteractive
install() { apt-get install -y -q --no-install-recommends "${packages[@]}" </dev/null; }
# Package lists may be fresh enough; they are fetched only where the first attempt fails.
install || { apt-get update -q && install; }
