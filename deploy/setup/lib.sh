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

# The machine's own entries for the release it runs, with the suite changed; both of apt's formats.
derive_sources() {
	suite=$1
	into=$2
	codename=$(. /etc/os-release && printf %s "${VERSION_CODENAME:-}")
	[ -n "$codename" ] || die "/etc/os-release names no release; this needs Debian"
	rm -rf "$into"
	mkdir -p "$into"
	for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
		[ -f "$file" ] || continue
		sed -n "s/[[:space:]]*#.*//; s/^[[:space:]]*\(deb[[:space:]]\{1,\}\(\[[^]]*\][[:space:]]*\)\{0,1\}[^[:space:]]\{1,\}[[:space:]]\{1,\}\)$codename[[:space:]]\{1,\}main.*/\1$suite main/p" \
			"$file" >>"$into/derived.list"
	done
	for file in /etc/apt/sources.list.d/*.sources; do
		[ -f "$file" ] || continue
		awk -v from="$codename" -v to="$suite" '
			function flush() { if (deb && ours && main && !off) print text "Types: deb\nSuites: " to "\nComponents: main\n"; text = ""; deb = ours = main = off = 0 }
			function has(line, word) { return (" " line " ") ~ ("[ \t]" word "[ \t]") }
			/^#/ { next }
			/^[ \t]*$/ { flush(); next }
			/^[^ \t]/ { field = tolower($0); sub(/:.*/, "", field) }
			{ value = $0; sub(/^[^ \t:]*:/, "", value) }
			field == "types" { if (has(value, "deb")) deb = 1; next }
			field == "suites" { if (has(value, from)) ours = 1; next }
			field == "components" { if (has(value, "main")) main = 1; next }
			field == "enabled" { if (tolower(value) ~ /no|false|0/) off = 1; next }
			{ text = text $0 "\n" }
			END { flush() }' "$file" >>"$into/derived.sources"
	done
	cat "$into"/derived.* 2>/dev/null | grep -q . || die "no source for $codename main in /etc/apt; add Debian's own archive there and run this again"
}
