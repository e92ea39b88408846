#!/bin/bash
# Runs a command on a machine of its own with systemd as its first process: in namespaces, on a pure cgroup v2 tree below the host's, which
# has no controllers where the host uses version 1. Nothing of the host's systemd, if it has one, is touched.
#   tests/systemd.sh <command> [<argument>...]
set -eu -o pipefail

die() { echo "systemd.sh: $*" >&2; exit 1; }

systemd=$(ls /usr/lib/systemd/systemd /lib/systemd/systemd 2>/dev/null | head -n1)
[ -n "$systemd" ] || die "systemd is not installed"
command -v dbus-daemon >/dev/null || die "dbus-daemon is not installed"
tree=$(awk '$3 == "cgroup2" { print $2; exit }' /proc/mounts)
[ -n "$tree" ] || die "no cgroup2 filesystem is mounted"

work=$(mktemp -d /tmp/coracle-systemd.XXXXXX)
cgroup=$tree/${work##*/}
first=
outer=
tidy() {
	[ -z "$first" ] || kill -KILL "$first" 2>/dev/null || true
	[ -z "$outer" ] || wait "$outer" 2>/dev/null || true
	for _ in $(seq 50); do
		find "$cgroup" -depth -type d -exec rmdir {} + 2>/dev/null && break
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

cat >"$work/init" <<-END
	set -e
	mount -t proc proc /proc
	umount -R /sys/fs/cgroup
	mount -t cgroup2 cgroup2 /sys/fs/cgroup
	mount -t tmpfs tmpfs /run
	mkdir -p /run/lock /run/dbus
	export container=coracle-test SYSTEMD_UNIT_PATH=$work/units
	exec $systemd --system --unit=test.target --log-target=console --log-level=info --show-status=no
END
mkdir -p "$cgroup/suite"
# In a cgroup of its own, which is the root of all that is inside.
(
	echo "$BASHPID" >"$cgroup/cgroup.procs"
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
	echo "$BASHPID" >"$cgroup/suite/cgroup.procs"
	CORACLE_SYSTEMD_BED=1 exec nsenter -t "$first" -m -p -C -i -u --wd="$PWD" -- "$@"
) || status=$?
[ $status = 0 ] || { echo "systemd said:" >&2; tail -n 40 "$work/console" >&2; }
exit $status
