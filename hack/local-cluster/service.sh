#!/usr/bin/env bash
# Starts and stops a node's programs. Runs inside the node: `service.sh NODE-DIRECTORY start|stop|kill|show NAME`.
# There is no init system in a node; this is what there is of one, and it restarts nothing by itself.
set -euo pipefail
dir=$1 verb=$2 name=$3
[[ -e $dir/run/$name.cmd ]] || { echo "service.sh: this node has no $name" >&2; exit 1; }

alive() {
	pid=$(cat "$dir/run/$name.pid" 2>/dev/null) && grep -qs '^State:.[^XZ]' "/proc/$pid/status"
}

end() { # SIGNAL
	alive || return 0
	kill "-$1" "$pid"
	for _ in $(seq 600); do
		alive || return 0
		sleep 0.1
	done
	echo "service.sh: $name, pid $pid, is still there a minute after SIG$1" >&2
	return 1
}

case $verb in
start)
	alive && exit
	setsid sh "$dir/run/$name.cmd" >>"$dir/log/$name.log" 2>&1 </dev/null &
	echo $! >"$dir/run/$name.pid"
	sleep 0.2
	alive || { echo "service.sh: $name ended at once: $(tail -n 1 "$dir/log/$name.log")" >&2; exit 1; }
	;;
stop) end TERM ;;
kill) end KILL ;;
show) if alive; then echo running; else echo stopped; fi ;;
*) echo "service.sh: $verb?" >&2; exit 2 ;;
esac
