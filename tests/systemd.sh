#!/bin/bash
# Runs a command on a machine of its own with systemd as its first process: in namespaces, below a cgroup of the host's. Nothing of the
# host's systemd, if it has one, is touched.
#   tests/systemd.sh v2|hybrid <command> [<argument>...]
# v2 is a pure tree of cgroup version 2, which has no controllers where the host uses version 1; hybrid has those of the host.
set -eu -o pipefail

mode=$1
shift
die() { echo "systemd.sh: $*" >&2; exit 1; }

systemd=$(ls /usr/lib/systemd/systemd /lib/systemd/systemd 2>/dev/null | head -n1)
[ -n "$systemd" ] || die "systemd is not installed"
command -v dbus-daemon >/dev/null || die "dbus-daemon is not installed"
work=$(mktemp -d /tmp/coracle-systemd.XXXXXX)
# Lines of name and mount point, which are those inside as well.
case $mode in
v2) awk '$3 == "cgroup2" { print "cgroup2 " $2; exit }' /proc/mounts ;;
hybrid) awk '$3 ~ /^cgroup2?$/ && !($2 in seen) { n = split($2, part, "/"); print part[n] " " $2; seen[$2] }' /proc/mounts ;;
*) die "$mode is no mode" ;;
esac >"$work/trees"
[ -s "$work/trees" ] || die "no cgroup filesystem is mounted"
# cgroups <command>: calls it with each cgroup of this machine.
cgroups() { while read -r _ point; do "$1" "$point/${work##*/}"; done <"$work/trees"; }
make() {
	local made
	for made in "$1" "$1/suite"; do
		mkdir -p "$made"
		# Of version 1: without these no process may enter.
		[ ! -e "$made/cpuset.cpus" ] || cat "$made/../cpuset.cpus" >"$made/cpuset.cpus" 2>/dev/null || true
		[ ! -e "$made/cpuset.mems" ] || cat "$made/../cpuset.mems" >"$made/cpuset.mems" 2>/dev/null || true
	done
}
enter() { echo "$BASHPID" >"$1/cgroup.procs"; }
enter_suite() { make "$1" && enter "$1/suite"; }
remove() { find "$1" -depth -type d -exec rmdir {} + 2>/dev/null || [ ! -e "$1" ]; }
first=
outer=
tidy() {
	[ -z "$first" ] || kill -KILL "$first" 2>/dev/null || true
	[ -z "$outer" ] || wait "$outer" 2>/dev/null || true
	for _ in $(seq 50); do
		cgroups remove && break
		sleep 0.1
	done
	rm -rf "$work"
}
trap tidy EXIT

unit() { printf '%s\n' "[Unit]" "DefaultDependencies=no" "${@:2}" >"$work/units/$1"; }
mkdir "$work/units"
unit test.target "Wants=dbus.socket dbus.service"
unit dbus.socket "[Socket]" "ListenStream=/run/dbus/system_bus_socket"
unit dbus.service "Requires=dbus.socket" "[Service]" "ExecReload=/bin/true" \
	"ExecStart=/usr/bin/dbus-daemon --system --address=systemd: --nofork --nopidfile --systemd-activation --syslog-only"
for target in sysinit basic shutdown umount final sockets paths timers local-fs default exit; do
	unit $target.target "Description=$target"
done

mounts() {
	if [ "$mode" = v2 ]; then
		echo "mount -t cgroup2 cgroup2 /sys/fs/cgroup"
		return
	fi
	echo "mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup"
	while read -r name _; do
		echo "mkdir /sys/fs/cgroup/$name"
		case $name in
		unified) echo "mount -t cgroup2 cgroup2 /sys/fs/cgroup/$name" ;;
		systemd) echo "mount -t cgroup -o none,name=systemd cgroup /sys/fs/cgroup/$name" ;;
		*) echo "mount -t cgroup -o $name cgroup /sys/fs/cgroup/$name" ;;
		esac
	done <"$work/trees"
}
cat >"$work/init" <<-END
	set -e
	mount -t proc proc /proc
	umount -R /sys/fs/cgroup
	$(mounts)
	mount -t tmpfs tmpfs /run
	mkdir -p /run/lock /run/dbus
	export container=coracle-test SYSTEMD_UNIT_PATH=$work/units:/run/systemd/system.control:/run/systemd/transient
	exec $systemd --system --unit=test.target --log-target=console --log-level=info --show-status=no
END
cgroups make
# In cgroups of its own, which are the roots of all that is inside.
(
	cgroups enter
	exec unshare --mount --pid --cgroup --ipc --uts --fork --propagation private sh "$work/init"
) >"$work/console" 2>&1 </dev/null &
outer=$!
for _ in $(seq 300); do
	first=$(pgrep -P "$outer" || true)
	inside() { nsenter -t "$first" -m -p -C -i -u -- "$@"; }
	[ -n "$first" ] && inside test -S /run/dbus/system_bus_socket 2>/dev/null &&
		inside systemctl is-active --quiet test.target dbus.service 2>/dev/null && break
	sleep 0.1
done
inside systemctl is-active --quiet test.target || { cat "$work/console" >&2; die "systemd does not come up"; }

status=0
(
	cgroups enter_suite
	CORACLE_SYSTEMD_BED=$mode exec nsenter -t "$first" -m -p -C -i -u --wd="$PWD" -- "$@"
) || status=$?
[ $status = 0 ] || { echo "systemd said:" >&2; tail -n 40 "$work/console" >&2; }
exit $status
