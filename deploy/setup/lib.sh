# Shared by the scripts beside it; read with `.`, from the top of the checkout.

say() { printf '== %s\n' "$*"; }

die() {
	printf 'setup: %s\n' "$*" >&2
	exit 1
}

# apt-get install, for the packages of the arguments that are missing.
apt_install() {
	missing=
	for package; do
		dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q '^install ok installed$' || missing="$missing $package"
	done
	[ -n "$missing" ] || return 0
	[ "$(id -u)" = 0 ] || die "packages are missing; as root run: apt-get install$missing"
	say "installing$missing"
	apt-get -q update || die "apt-get update failed; look at the network and at /etc/apt"
	# shellcheck disable=SC2086
	DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends install $missing ||
		die "apt-get install$missing failed; install these packages by hand and run this again"
}

# The oldest compiler that Cargo.toml accepts.
msrv() { sed -n 's/^rust-version *= *"\(.*\)"/\1/p' Cargo.toml; }

# Whether version $1 is at least $2.
at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }

# Prints the directory of a cargo that is new enough, or fails.
find_cargo() {
	for dir in $(printf %s "$PATH" | tr : ' ') "${HOME:-/root}/.cargo/bin" /root/.cargo/bin; do
		[ -x "$dir/cargo" ] || continue
		version=$("$dir/cargo" --version 2>/dev/null | cut -d' ' -f2)
		if [ -n "$version" ] && at_least "${version%%[-+]*}" "$(msrv)"; then
			printf '%s\n' "$dir"
			return 0
		fi
	done
	return 1
}
