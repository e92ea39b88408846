#!/bin/sh
# Runs real containers through the shim on a containerd of its own, and shows each command with its output.
# RUNTIME, PATH_FIRST: another runtime type and where its shim is, to compare.
set -eu
cd "$(dirname "$0")/.."
. deploy/setup/lib.sh

[ "$(id -u)" = 0 ] || die "containers need root here: run it as root"
peers=$PWD/target/cache/bookworm/usr
[ -x "$peers/bin/containerd" ] || die "containerd is not unpacked yet: run make demo, or deploy/setup/peers.sh"
[ -x /bin/busybox ] || die "/bin/busybox is missing: run make demo, or deploy/setup/tools.sh"
runtime=${RUNTIME:-io.containerd.coracle.v2}
shim=$PWD/target/$(uname -m)-unknown-linux-gnu/release
# The socket's path has to be short, and files that are executed cannot lie on /run, which is often mounted noexec.
here=$(mktemp -d /run/coracle-demo.XXXXXX)
files=$(mktemp -d "$PWD/target/demo.XXXXXX")
namespace=demo$$
daemon=

start_containerd() {
	env -i PATH="${PATH_FIRST:-$shim}:/usr/sbin:/usr/bin:/sbin:/bin" "$peers/bin/containerd" --config "$here/config.toml" >>"$here/containerd.log" 2>&1 &
	daemon=$!
	tries=0
	until "$peers/bin/ctr" -a "$here/containerd.sock" version >/dev/null 2>&1; do
		tries=$((tries + 1))
		[ $tries -lt 100 ] || die "containerd did not start; the end of its log: $(tail -n 3 "$here/containerd.log")"
		sleep 0.1
	done
}

ctr() { "$peers/bin/ctr" -a "$here/containerd.sock" -n "$namespace" "$@"; }

# Removes what the demo made, whichever way it ends.
cleanup() {
	code=$?
	trap - EXIT INT TERM
	if [ -n "$daemon" ] && kill -0 "$daemon" 2>/dev/null; then
		for id in $(ctr task ls -q 2>/dev/null); do ctr task rm -f "$id" >/dev/null 2>&1 || :; done
		for id in $(ctr container ls -q 2>/dev/null); do ctr container rm "$id" >/dev/null 2>&1 || :; done
		kill "$daemon"
		wait "$daemon" 2>/dev/null || :
	fi
	[ $code = 0 ] || printf '\nThe demo failed; the end of the log of containerd:\n%s\n' "$(tail -n 5 "$here/containerd.log" 2>/dev/null)" >&2
	find /sys/fs/cgroup -depth -type d -path "*/$namespace*" -exec rmdir {} + 2>/dev/null || :
	rm -rf "$here" "$files"
	exit $code
}
trap cleanup EXIT
trap 'exit 130' INT TERM

title() { if [ -t 1 ]; then printf '\n\033[1m%s\033[0m\n' "$*"; else printf '\n%s\n' "$*"; fi; }

# Shows a ctr command as one would type it, then runs it.
show() {
	printf '  $ ctr'
	for word; do
		case $word in
		*[!A-Za-z0-9_./:=,-]*) printf " '%s'" "$word" ;;
		*) printf ' %s' "$word" ;;
		esac
	done
	printf '\n'
	code=0
	ctr "$@" >"$here/out" 2>&1 || code=$?
	sed 's/^/    /' "$here/out"
	return $code
}

# Waits until a file of the demo has a line.
await_line() {
	tries=0
	until grep -q "$1" "$2" 2>/dev/null; do
		tries=$((tries + 1))
		[ $tries -lt 100 ] || die "no \"$1\" appeared in 10 s"
		sleep 0.1
	done
}

run="--runtime $runtime --rootfs"
mkdir -p "$files/rootfs/bin" "$files/rootfs/dev" "$files/rootfs/proc" "$files/rootfs/sys" "$files/rootfs/tmp" "$files/rootfs/run" "$files/rootfs/etc"
cp /bin/busybox "$files/rootfs/bin/busybox"
for applet in $(/bin/busybox --list); do [ "$applet" = busybox ] || ln -s busybox "$files/rootfs/bin/$applet"; done
cat >"$here/config.toml" <<END
version = 2
root = "$files/root"
state = "$here/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]
[grpc]
address = "$here/containerd.sock"
[ttrpc]
address = "$here/containerd.sock.ttrpc"
END
start_containerd
title "A containerd of its own runs: $("$peers/bin/containerd" --version), with $runtime"

title "A container, from nothing to gone"
show run --rm $run "$files/rootfs" hello /bin/echo "Hello from inside; I am pid 1 of my own world."

title "One in the background, and a second process in it"
show run --detach --log-uri "file://$here/web.log" $run "$files/rootfs" web /bin/sh -c "while true; do date; sleep 1; done"
show task exec --exec-id look web /bin/ps -o pid,args
show task ls

title "Paused, it stands still; resumed, it goes on"
show task pause web
show task ls
show task resume web

title "containerd is killed with -9. The container does not notice"
printf '  $ kill -9 %s\n' "$daemon"
kill -9 "$daemon"
wait "$daemon" 2>/dev/null || :
before=$(wc -l <"$here/web.log")
sleep 2
printf '    its log grew from %s to %s lines with no containerd there\n' "$before" "$(wc -l <"$here/web.log")"
[ "$(wc -l <"$here/web.log")" -gt "$before" ] || die "the container stood still while containerd was away"
start_containerd
echo "    containerd is back"
show task exec --exec-id again web /bin/echo "and finds it again"
show task kill --signal SIGKILL web
tries=0
until ctr task ls | grep -q 'web .*STOPPED'; do
	tries=$((tries + 1))
	[ $tries -lt 100 ] || die "the killed container did not stop"
	sleep 0.1
done
show task ls
show task rm web
show container rm web

title "A limit of 32 MB of memory, and a program that wants 100"
ctr events >"$here/events" 2>/dev/null &
events=$!
sleep 0.5
show run --rm --memory-limit 33554432 $run "$files/rootfs" greedy /bin/dd if=/dev/zero of=/dev/null bs=100M count=1 || echo "    exit code $?: killed by the kernel, 128 + 9"
await_line '/tasks/exit.*greedy' "$here/events"
kill $events
wait $events 2>/dev/null || :
echo "  containerd was told, in this order:"
sed -n 's/.* \(\/tasks\/[a-z-]*\) .*greedy.*/    \1/p' "$here/events"

title "A command that is not there"
show run --rm $run "$files/rootfs" missing /bin/no-such-command || echo "    exit code $?"
ctr container rm missing >/dev/null 2>&1 || :

title "What is left on the host"
# The brackets keep grep from finding itself.
shims() { cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\0' ' ' | grep -o -e "-[n]amespace $namespace " | wc -l; }
tries=0
until [ "$(shims)" = 0 ] || [ $tries -eq 50 ]; do
	tries=$((tries + 1))
	sleep 0.1
done
left=$(shims)
mounts=$(grep -c -e "$here" -e "$files" /proc/self/mountinfo || :)
cgroups=$(find /sys/fs/cgroup -mindepth 1 -type d -path "*/$namespace/*" | wc -l)
echo "    shim processes: $left    mounts: $mounts    cgroups: $cgroups"
[ "$left$mounts$cgroups" = 000 ] || die "the demo left something behind"
title "That is all. Next: make test"
