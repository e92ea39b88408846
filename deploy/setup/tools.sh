#!/bin/sh
# Puts the tools of build and tests in place: a C linker, libseccomp (tests compare with it), busybox (test images), strace (slows a shim down),
# e2fsprogs (a root filesystem in a file), systemd and dbus (a machine of its own for the systemd driver) and a Rust compiler.
# What is there already is used; nothing is installed twice. Run as root, or have the packages.
set -eu
cd "$(dirname "$0")/../.."
. deploy/setup/lib.sh

command -v apt-get >/dev/null || die "this needs Debian's apt-get; elsewhere install gcc, pkg-config, libseccomp, busybox-static, strace, e2fsprogs, systemd, dbus, procps and Rust $(msrv) by hand"
apt_install gcc libc6-dev make mount iproute2 nftables iptables pkg-config libseccomp-dev busybox-static strace e2fsprogs systemd dbus procps ca-certificates

if [ ! -e /etc/hosts ] && [ "$(id -u)" = 0 ]; then
	say "making /etc/hosts, which is missing and which ctr's --net-host mounts"
	printf '127.0.0.1\tlocalhost\n' >/etc/hosts
fi

if ! find_cargo >/dev/null; then
	say "no cargo of at least $(msrv): taking Debian's rustc-web and cargo-web"
	[ "$(id -u)" = 0 ] || die "Rust $(msrv) or newer is missing; install it, or run this as root"
	# Security updates bring newer ones, so that what the lists knew last month may be too old.
	apt-get -q update || die "apt-get update failed; look at the network and at /etc/apt"
	DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends install rustc-web cargo-web ||
		die "apt-get install rustc-web cargo-web failed; install Rust $(msrv) or newer with cargo on PATH, and run this again"
	find_cargo >/dev/null || die "Debian's cargo-web is older than $(msrv); add Debian's security updates to /etc/apt, or install Rust $(msrv) or newer with cargo on PATH"
fi
cargo_dir=$(find_cargo)
say "cargo: $("$cargo_dir/cargo" --version) in $cargo_dir"
