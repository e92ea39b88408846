#!/bin/sh
# Runs suites in the virtual machine: cgroup v2 alone with all its controllers, systemd as the first process, AppArmor.
# usage: test.sh [core|all|suite ...]      CORACLE_BIN says which program is tested
set -eu
cd "$(dirname "$0")/../.."
. deploy/setup/lib.sh

core="vm launch spec systemd shim_rpc cli rootless podman"
all="$core network limits hooks security bad_input exit_codes contract sandbox"
case ${1:-core} in
core) set -- $core ;;
all) set -- $all ;;
esac
PATH=$(find_cargo):$PATH
mkdir -p target/vm
cargo test --quiet --workspace --no-run --message-format=json 2>/dev/null |
	sed -n 's/.*"target":{"kind":\["test"\][^}]*"name":"\([^"]*\)".*"executable":"\([^"]*\)".*/\1 \2/p' >target/vm/executables
: >target/vm/suites
for suite; do
	grep "^$suite " target/vm/executables >>target/vm/suites || die "there is no suite $suite"
done
exec deploy/vm/run.sh sh -c '
	failed=
	while read -r name program; do
		echo "== vm: $name"
		case $name in launch) cd runtime-core ;; *) cd tests ;; esac
		"$program" || failed="$failed $name"
		cd ..
	done <target/vm/suites
	[ -z "$failed" ] || { echo "vm: failed:$failed"; exit 1; }
'
