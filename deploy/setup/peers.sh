#!/bin/sh
# Unpacks containerd 1.6, 1.7 and 2.x, runc, crun, the CNI plugins, Podman and the schema of the runtime spec from Debian's packages into
# target/cache/<suite>; nothing is installed.
# usage: peers.sh [suite ...]      without a suite: bookworm trixie sid
# The mirror is the one that this machine's apt uses. What is there is used again for PEERS_MAX_AGE days (14).
set -eu
cd "$(dirname "$0")/../.."
. deploy/setup/lib.sh

cache=$PWD/target/cache
max_age=${PEERS_MAX_AGE:-14}

packages_of() {
	case $1 in
	bookworm) echo containerd runc crun containernetworking-plugins podman conmon golang-github-containers-common golang-github-containers-image libassuan0 ;;
	sid) echo containerd golang-github-opencontainers-specs-dev ;;
	trixie) echo containerd docker.io docker-cli docker-buildx docker-registry tini ;;
	*) echo containerd ;;
	esac
}

# apt-get or apt-cache with a state of its own for one suite.
apt_for() {
	suite=$1
	tool=$2
	shift 2
	state=$cache/apt-$suite
	"$tool" -q -o Dir::Etc::sourcelist=/dev/null -o Dir::Etc::sourceparts="$state/sources" -o Dir::Etc::preferences=/dev/null \
		-o Dir::Etc::preferencesparts=/dev/null -o Dir::State="$state/state" -o Dir::State::status="$state/status" -o Dir::Cache="$state/cache" \
		-o APT::Sandbox::User=root -o APT::Default-Release= -o Acquire::Languages=none -o Acquire::Retries=3 \
		-o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false "$@"
}

# Downloads the suite's packages and unpacks them beside the old ones, which are replaced only when all is there.
fetch() {
	suite=$1
	state=$cache/apt-$suite
	mkdir -p "$state/state/lists/partial" "$state/cache/archives/partial"
	: >"$state/status"
	derive_sources "$suite" "$state/sources"
	say "$suite: reading the package lists"
	apt_for "$suite" apt-get update >"$state/log" 2>&1 || :
	new=$cache/$suite.new
	rm -rf "$new"
	mkdir -p "$new"
	: >"$new/versions"
	for package in $(packages_of "$suite"); do
		unpack "$suite" "$package" "$new" || return 1
	done
	add_libraries "$suite" "$new"
	date +%s >"$new/fetched"
	rm -rf "$cache/$suite"
	mv "$new" "$cache/$suite"
}

unpack() {
	suite=$1
	package=$2
	new=$3
	mkdir -p "$new/debs"
	(cd "$new/debs" && apt_for "$suite" apt-get download "$package") >>"$cache/apt-$suite/log" 2>&1 || return 1
	for deb in "$new"/debs/"${package}"_*.deb; do
		dpkg -x "$deb" "$new"
		printf '%s %s %s\n' "$suite" "$package" "$(dpkg-deb -f "$deb" Version)" >>"$new/versions"
		rm "$deb"
	done
}

programs_of() { find "$1/usr/bin" "$1/usr/sbin" -type f -perm -u+x 2>/dev/null; }

missing_libraries() {
	LD_LIBRARY_PATH=$(library_path "$1") ldd $(programs_of "$1") 2>/dev/null | sed -n 's/^[[:space:]]*\([^ ]*\) => not found.*/\1/p' | sort -u
}

library_path() {
	triple=$(dpkg-architecture -qDEB_HOST_MULTIARCH 2>/dev/null || gcc -print-multiarch)
	printf '%s' "$1/usr/lib/$triple:$1/lib/$triple"
}

# A minimal machine lacks some libraries of the peers; they come from the packages that these depend on, into the same tree.
add_libraries() {
	suite=$1
	new=$2
	[ -n "$(missing_libraries "$new")" ] || return 0
	for package in $(packages_of "$suite"); do
		for library in $(apt_for "$suite" apt-cache depends --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces --no-enhances "$package" |
			sed -n 's/^ *Depends: \(lib[a-z0-9.+-]*\)$/\1/p'); do
			[ "$library" = libc6 ] || unpack "$suite" "$library" "$new" || :
		done
	done
	missing=$(missing_libraries "$new" | tr '\n' ' ')
	[ -z "$missing" ] || die "$suite's programs need $missing, which neither this machine nor their packages have; install them and run this again"
}

fresh() {
	[ -f "$cache/$1/fetched" ] || return 1
	for package in $(packages_of "$1"); do grep -q "^$1 $package " "$cache/$1/versions" || return 1; done
	[ $(($(date +%s) - $(cat "$cache/$1/fetched"))) -lt $((max_age * 86400)) ]
}

mkdir -p "$cache"
[ $# -gt 0 ] || set -- bookworm trixie sid
for suite; do
	fresh "$suite" && continue
	if (fetch "$suite"); then
		say "$suite: unpacked into target/cache/$suite"
	elif [ -f "$cache/$suite/fetched" ]; then
		say "$suite: not refreshed, see target/cache/apt-$suite/log; using what was fetched on $(date -d "@$(cat "$cache/$suite/fetched")" +%F)"
	else
		tail -n 5 "$cache/apt-$suite/log" >&2 2>/dev/null || :
		die "$(packages_of "$suite") of Debian $suite cannot be had from this machine's apt sources; look at the network and at target/cache/apt-$suite/log, then run this again"
	fi
done
cat "$cache"/*/versions >"$cache/versions.txt"
say "peers (suite, package, version):"
cat "$cache/versions.txt"
