#!/bin/sh
# Runs suites in the virtual machine: cgroup v2 alone with all its controllers, systemd as the first process, AppArmor; in another boot SELinux.
# usage: test.sh [core|all|suite ...]      suite@systemd is with that cgroup driver; CORACLE_BIN says which program is tested
set -eu
cd "$(dirname "$0")/../.."
. deploy/setup/lib.sh

core="vm launch spec systemd shim_rpc cli rootless podman pods@systemd selinux"
all="$core network limits hooks security bad_input exit_codes contract sandbox pods docker docker@systemd"
case ${1:-core} in
core) set -- $core ;;
all)
	set -- $all
	export VM_TIMEOUT="${VM_TIMEOUT:-7200}"
	;;
esac
PATH=$(find_cargo):$PATH
mkdir -p target/vm
cargo test --quiet --workspace --no-run --message-format=json 2>/dev/null |
	sed -n 's/.*"target":{"kind":\["test"\][^}]*"name":"\([^"]*\)".*"executable":"\([^"]*\)".*/\1 \2/p' >target/vm/executables
# run <file of suites> [environment ...]: boots once and runs them
run() {
	list=$1
	shift
	[ -s "$list" ] || return 0
	env "$@" deploy/vm/run.sh sh -c '
		failed=
		while read -r suite program; do
			echo "== vm: $suite"
			case $suite in launch) cd runtime-core ;; *) cd tests ;; esac
			driver=
			case $suite in *@*) driver=${suite#*@} ;; esac
			TEST_CGROUPS=$driver "$program" || failed="$failed $suite"
			cd ..
		done <"$1"
		[ -z "$failed" ] || { echo "vm: failed:$failed"; exit 1; }
	' sh "$list"
}
: >target/vm/suites
: >target/vm/selinux
for suite; do
	case $suite in selinux) list=target/vm/selinux ;; *) list=target/vm/suites ;; esac
	program=$(sed -n "s/^${suite%@*} //p" target/vm/executables)
	[ -n "$program" ] || die "there is no suite $suite"
	echo "$suite $program" >>$list
done
# Programs are slow there, and what containerd's versions differ in is tested on the host.
export TEST_VERSIONS="${TEST_VERSIONS:-1.7}"
# There is no compiler in there.
for program in pause watcher; do
	cc -static -Os -s -o "target/vm/$program" "tests/src/$program.c" || die "cc fails; run: make tools"
done
export CORACLE_PROGRAMS="$PWD/target/vm"
status=0
run target/vm/suites || status=$?
# One security module at a time can label: another boot, and a policy that the suite loads.
if [ -s target/vm/selinux ]; then
	apt_install secilc
	secilc --policyvers=33 --output="$PWD/target/vm/policy" --filecontext=/dev/null tests/tests/selinux/policy.cil || die "secilc refuses the policy"
	run target/vm/selinux VM_APPEND="apparmor=0 security=selinux selinux=1" CORACLE_SELINUX_POLICY="$PWD/target/vm/policy" || status=$?
fi
exit $status
