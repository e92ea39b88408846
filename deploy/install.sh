#!/bin/sh
# Installs Coracle for containerd, or removes it without a trace.
#
# usage: install.sh [install|uninstall|status] [option ...]
#   --from DIR         where the programs are (default: beside this script, else the checkout's release build, else /usr/bin,
#                      where the Debian package has them and they stay)
#   --bin-dir DIR      where they go; must be in containerd's PATH (default: /usr/local/bin)
#   --config FILE      containerd's configuration (default: /etc/containerd/config.toml)
#   --handler NAME     the handler that a RuntimeClass names (default: coracle)
#   --style STYLE      own:     runtime_type = "io.containerd.coracle.v2" (default)
#                      path:    runtime_type = "io.containerd.runc.v2" with runtime_path
#                      podless: as own, with sandboxer = "shim": pods without a pause container (containerd 2.x)
#                      drop-in: in place of runc's shim, for every container of this containerd; no handler is added
#   --containerd FILE  the program that checks the configuration (default: the one in PATH)
#   --restart COMMAND  how containerd is restarted (default: systemctl, where it runs containerd)
#   --no-restart       only say that it has to be
#   --root DIR         the host's root, where this runs in a container that has it there (and the host's PID namespace)
#   --state DIR        what is remembered for uninstall (default: /var/lib/coracle)
#   --force            go on although `coracle check` finds that something is missing, or although containers use the shim
#   --dry-run          say what would be done
#
# Running containers are left alone by all of it: each keeps the program that it was started with.
set -eu

say() { printf 'coracle: %s\n' "$*"; }
die() {
	printf 'coracle: %s\n' "$*" >&2
	exit 1
}

shim="containerd-shim-coracle-v2"
begin='# BEGIN coracle: added by its installer, which also removes it'
end='# END coracle'

action=install from='' bin_dir='' config=/etc/containerd/config.toml handler=coracle style=own
containerd=containerd restart=auto root='' state=/var/lib/coracle force=no dry_run=no
case ${1:-} in
install | uninstall | status)
	action=$1
	shift
	;;
esac
while [ $# -gt 0 ]; do
	case $1 in
	--no-restart) restart='' && shift ;;
	--force) force=yes && shift ;;
	--dry-run) dry_run=yes && shift ;;
	-h | --help) sed -n '2,/^set -eu/{/^set -eu/d;s/^# \{0,1\}//;p;}' "$0" && exit 0 ;;
	--from | --bin-dir | --config | --handler | --style | --containerd | --restart | --root | --state)
		[ $# -ge 2 ] || die "$1 needs a value; see --help"
		case $1 in
		--from) from=$2 ;;
		--bin-dir) bin_dir=$2 ;;
		--config) config=$2 ;;
		--handler) handler=$2 ;;
		--style) style=$2 ;;
		--containerd) containerd=$2 ;;
		--restart) restart=$2 ;;
		--root) root=$2 ;;
		--state) state=$2 ;;
		esac
		shift 2
		;;
	*) die "unknown argument '$1'; see --help" ;;
	esac
done
case $style in own | path | podless | drop-in) ;; *) die "--style '$style': want own, path, podless or drop-in" ;; esac
case $handler in '' | *[!A-Za-z0-9_-]*) die "--handler '$handler': want letters, digits, '-' and '_'" ;; esac
[ "$(id -u)" = 0 ] || die "this changes the system: run it as root"

if [ -z "$bin_dir" ]; then
	bin_dir=/usr/local/bin
	case $(dirname "$0") in /usr/share/coracle) [ -n "$from" ] || { bin_dir=/usr/bin && from=/usr/bin; } ;; esac
fi
bin=$root$bin_dir conf=$root$config memory=$root$state
backup=$memory/config.before
# Beside the configuration: it may import files by relative names. It may also hold passwords, so only root may read it.
next=$(dirname "$conf")/.coracle-next.toml
new=''

cleanup() {
	rm -f "$next" "$(dirname "$conf")/.$(basename "$conf").coracle-new" "$memory/config.next" "$memory/said"
	[ -z "$new" ] || rm -rf "$new"
}
trap cleanup EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

# On the host, where this runs in a container.
on_host() {
	if [ -n "$root" ]; then chroot "$root" "$@"; else "$@"; fi
}

# Remembers that a path is ours to remove, before it is made.
remember() {
	grep -qxF "$1" "$memory/made" 2>/dev/null || printf '%s\n' "$1" >>"$memory/made"
}

# The directory of what is remembered comes into being at once, and with the list of what was made for it.
make_memory() {
	# Copies of the configuration are kept in it.
	[ ! -d "$memory" ] || { chmod 0700 "$memory" && return 0; }
	missing=$memory top=$memory
	while [ ! -d "$(dirname "$top")" ]; do
		top=$(dirname "$top")
		missing="$top
$missing"
	done
	new=$(dirname "$top")/.coracle-new
	rm -rf "$new"
	mkdir -p "$new${memory#"$top"}"
	chmod 0700 "$new${memory#"$top"}"
	printf '%s\n' "$missing" >"$new${memory#"$top"}/made"
	mv "$new" "$top"
	new=''
}

make_dir() {
	[ ! -d "$1" ] || return 0
	make_dir "$(dirname "$1")"
	remember "$1"
	mkdir "$1"
}

# Replaces $2 by $1 at once: whoever looks sees the old file or the whole new one.
put() {
	new=$(dirname "$2")/.$(basename "$2").coracle-new
	cp "$1" "$new"
	chmod "$3" "$new"
	sync "$new" 2>/dev/null || sync
	mv -f "$new" "$2"
	new=''
}

# As put, but $2 keeps its owner, group, mode, ACL and extended attributes. A new file is the copy of $1 with mode 0644.
put_content() {
	[ -e "$2" ] || { put "$1" "$2" 0644 && return 0; }
	new=$(dirname "$2")/.$(basename "$2").coracle-new
	rm -f "$new"
	cp --preserve=all "$2" "$new" 2>/dev/null || cp -p "$2" "$new"
	cat "$1" >"$new"
	sync "$new" 2>/dev/null || sync
	mv -f "$new" "$2"
	new=''
}

# The file behind symbolic links of the host, which stay.
resolve_config() {
	if [ -L "$conf" ]; then
		conf=$root$(on_host readlink -f "$config") || die "$config is a symbolic link to nowhere: nothing of it was changed"
	fi
	[ ! -e "$conf" ] || [ -f "$conf" ] || die "$config is no regular file: nothing of it was changed"
}

# Without one of the marks the end of the block is unknown.
check_block() {
	[ -e "$conf" ] || return 0
	case $(sed -n '/# BEGIN coracle/p;/# END coracle/p' "$conf") in
	'' | "$begin
$end") ;;
	*) die "the block of this installer in $config is not whole: its lines '$begin' and '$end' must each be there once; nothing was changed" ;;
	esac
}

without_block() { sed "/^$begin\$/,/^$end\$/d" "$1"; }

version_of() {
	sed -n 's/^[[:space:]]*version[[:space:]]*=[[:space:]]*\([0-9]*\).*/\1/p' "$1" | head -n 1
}

is_containerd_2() {
	case $(on_host "$containerd" --version 2>/dev/null) in *' v2.'* | *' 2.'*) ;; *) return 1 ;; esac
}

# The configuration with our block, as $2. The block goes to the end: a table may stand there, whatever comes before.
merge() {
	version=2
	! is_containerd_2 || version=3
	: >"$2"
	if [ -s "$1" ]; then
		without_block "$1" >"$2"
		version=$(version_of "$1")
		case ${version:-1} in
		2 | 3) ;;
		1) die "$config is of version 1: run 'containerd config migrate', look at what it prints, and use that" ;;
		*) die "$config is of version $version, which this installer does not know: add the handler by hand, see deploy/containerd" ;;
		esac
	fi
	[ -z "$(tail -c 1 "$2")" ] || echo >>"$2"
	runtimes='plugins."io.containerd.grpc.v1.cri".containerd.runtimes'
	[ "$version" = 2 ] || runtimes="plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes"
	if grep -q "^[[:space:]]*\[.*runtimes\.[\"']\{0,1\}${handler}[\"']\{0,1\}\]" "$2"; then
		die "$config has a handler '$handler' that is not of this installer: remove it, or choose another name with --handler"
	fi
	block=$begin
	[ -s "$2" ] || block="$block
version = $version"
	# containerd 1.x forgets its built-in runc as soon as another handler is there.
	grep -q "^[[:space:]]*\[.*runtimes\.[\"']\{0,1\}runc[\"']\{0,1\}\]" "$2" || block="$block
[$runtimes.runc]
  runtime_type = \"io.containerd.runc.v2\""
	block="$block
[$runtimes.$handler]
  runtime_type = \"io.containerd.coracle.v2\""
	case $style in
	path)
		block="${block%\"io.containerd.coracle.v2\"}\"io.containerd.runc.v2\"
  runtime_path = \"$bin_dir/$shim\""
		;;
	podless)
		block="$block
  sandboxer = \"shim\""
		;;
	esac
	printf '%s\n%s\n' "$block" "$end" >>"$2"
	if grep -q '^[[:space:]]*disabled_plugins.*["'"'"']\(io\.containerd\.grpc\.v1\.\)\{0,1\}cri["'"'"']' "$2"; then
		say "note: $config disables CRI (disabled_plugins), so Kubernetes will not find the handler; ctr and Docker need none"
	fi
}

check_config() { on_host "$containerd" --config "${1#"$root"}" config dump >/dev/null 2>"$memory/said" || return 1; }

restart_containerd() {
	case $restart in
	'') say "restart containerd for the handler to be there" ;;
	auto)
		enter=
		[ -z "$root" ] || enter='nsenter -t 1 -m -u -i -n -p --'
		if $enter systemctl is-active --quiet containerd 2>/dev/null; then
			say "restarting containerd; containers go on"
			$enter systemctl restart containerd && $enter systemctl is-active --quiet containerd
		else
			say "containerd is no running service of systemd here: restart it for the handler to be there"
		fi
		;;
	*) sh -c "$restart" ;;
	esac
}

running() {
	count=0
	for comm in /proc/[0-9]*/comm; do
		read -r name <"$comm" 2>/dev/null || continue
		[ "$name" != coracle-launch ] || count=$((count + 1))
	done
	echo "$count"
}

find_programs() {
	for dir in "$from" "$(dirname "$0")" "$(dirname "$0")/../target/$(uname -m)-unknown-linux-gnu/release"; do
		[ -n "$dir" ] && [ -x "$dir/$shim" ] && [ -x "$dir/coracle" ] && from=$dir && return 0
		[ -z "$from" ] || break
	done
	die "$shim and coracle are not in ${from:-the directories that are looked at}: run 'make build', or say where they are with --from"
}

install_programs() {
	make_dir "$bin"
	if [ "$(readlink -f "$from")" != "$(readlink -f "$bin")" ]; then
		for program in "$shim" coracle; do
			remember "$bin/$program"
			put "$from/$program" "$bin/$program" 0755
		done
	fi
	[ "$style" = drop-in ] || return 0
	name=$bin/containerd-shim-runc-v2
	if [ -e "$name" ] && [ ! -L "$name" ]; then
		# runc's own shim was in this directory: it comes back with uninstall.
		put "$name" "$memory/containerd-shim-runc-v2" 0755
	elif [ ! -e "$memory/containerd-shim-runc-v2" ]; then
		remember "$name"
	fi
	ln -sf "$shim" "$name.coracle-new"
	mv -f "$name.coracle-new" "$name"
	case $(on_host sh -c 'command -v containerd-shim-runc-v2') in
	"$bin_dir/containerd-shim-runc-v2") ;;
	*) say "note: another containerd-shim-runc-v2 comes before $bin_dir in PATH; containerd's own PATH must have $bin_dir first" ;;
	esac
}

install_config() {
	[ "$style" != drop-in ] || return 0
	make_dir "$(dirname "$conf")"
	# A file that a killed installer left may have another mode.
	rm -f "$next"
	(umask 077 && : >"$next")
	merge "$conf" "$next"
	if ! check_config "$next"; then
		said=$(tail -n 1 "$memory/said")
		die "containerd does not take the configuration with the handler in it, so nothing of it was changed: $said"
	fi
	rm -f "$memory/said"
	if [ -e "$conf" ]; then
		if cmp -s "$next" "$conf"; then
			say "$config has the handler '$handler' already"
			return 0
		fi
		[ -e "$backup" ] || grep -qxF "$begin" "$conf" || put "$conf" "$backup" "$(stat -c %a "$conf")"
		cp -p "$conf" "$memory/config.last"
	else
		remember "$conf"
		rm -f "$memory/config.last"
	fi
	put_content "$next" "$conf"
	if ! restart_containerd; then
		if [ -e "$memory/config.last" ]; then put_content "$memory/config.last" "$conf"; else rm -f "$conf"; fi
		restart_containerd || :
		die "containerd did not come back with the new configuration: the old one is in place again; look at containerd's log"
	fi
	rm -f "$memory/config.last"
}

do_install() {
	find_programs
	if ! found=$("$from/coracle" check); then
		printf '%s\n' "$found" | grep -E '^MISSING|^Containers' >&2
		[ "$force" = yes ] || die "this host cannot run containers with Coracle; 'coracle check' says more, --force installs all the same"
	fi
	on_host sh -c "command -v '$containerd'" >/dev/null || die "containerd is not there ($containerd): install it first, or say where it is with --containerd"
	[ "$style" != podless ] || is_containerd_2 || die "--style podless needs containerd 2.x; take own"
	if [ "$style" != drop-in ]; then
		resolve_config
		check_block
	fi
	if [ "$dry_run" = yes ]; then
		say "would install $shim and coracle from $from into $bin_dir, style $style"
		[ "$style" = drop-in ] || say "would add the handler '$handler' to $config, check it, and restart containerd"
		return 0
	fi
	make_memory
	install_programs
	install_config
	say "installed ($style). Try: ctr run --rm --runtime io.containerd.coracle.v2 <image> test echo works"
}

do_uninstall() {
	[ -d "$memory" ] || die "nothing of this installer is here ($state is missing)"
	resolve_config
	check_block
	users=$(running)
	if [ "$users" != 0 ] && [ "$force" != yes ]; then
		die "$users shims are running: remove their containers first, or use --force (they go on, but containerd cannot start others in their pods)"
	fi
	if [ "$dry_run" = yes ]; then
		say "would remove the handler from $config and these:"
		cat "$memory/made"
		return 0
	fi
	# Bridges and firewall of networks that nobody is in any more.
	if [ -x "$bin/coracle" ] && [ -e "$root/etc/coracle/network.toml" ]; then
		on_host "$bin_dir/coracle" network prune || say "networks are left on the host"
	fi
	changed=no
	if [ -e "$conf" ] && grep -qxF "$begin" "$conf"; then
		changed=yes
		chmod 0700 "$memory"
		without_block "$conf" >"$memory/config.next"
		if [ -e "$backup" ] && [ "$(cat "$memory/config.next")" = "$(cat "$backup")" ]; then
			put_content "$backup" "$conf"
		elif [ ! -s "$memory/config.next" ] && grep -qxF "$conf" "$memory/made"; then
			rm -f "$conf"
		else
			put_content "$memory/config.next" "$conf"
			say "note: $config was changed by others meanwhile; only the handler was taken out"
		fi
	fi
	if [ -e "$memory/containerd-shim-runc-v2" ]; then
		put "$memory/containerd-shim-runc-v2" "$bin/containerd-shim-runc-v2" 0755
	fi
	[ "$changed" = no ] || restart_containerd || say "containerd did not come back: look at its log"
	# The last made goes first; a directory that others use by now stays.
	sed '1!G;h;$!d' "$memory/made" | while read -r path; do
		[ "$path" != "$memory" ] || continue
		[ "$path" != "$conf" ] || continue
		if [ -d "$path" ] && [ ! -L "$path" ]; then rmdir "$path" 2>/dev/null || :; else rm -f "$path"; fi
	done
	parents=$(grep -F "$root" "$memory/made" | while read -r path; do case $memory/ in "$path"/*) echo "$path" ;; esac done | sort -r)
	rm -rf "${memory:?}"
	for path in $parents; do [ "$path" = "$memory" ] || rmdir "$path" 2>/dev/null || :; done
	say "removed"
}

case $action in
install) do_install ;;
uninstall) do_uninstall ;;
status)
	if [ -x "$bin/$shim" ]; then say "installed in $bin_dir: $("$bin/coracle" --version)"; else say "not installed in $bin_dir"; fi
	if grep -qxF "$begin" "$conf" 2>/dev/null; then say "$config has the handler"; else say "$config has no handler of this installer"; fi
	say "$(running) shims are running"
	;;
esac
