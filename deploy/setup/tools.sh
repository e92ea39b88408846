#!/bin/sh
# Puts the build tools in place: a C linker, libseccomp (tests compare with it), busybox (test images) and a Rust compiler.
# What is there already is used; nothing is installed twice. Run as root, or have the packages.
set -eu
cd "$(dirname "$0")/../.."
. deploy/setup/lib.sh

command -v apt-get >/dev/null || die "this needs Debian's apt-get; elsewhere install gcc, pkg-config, libseccomp, busybox-static and Rust $(msrv) by hand"
apt_install gcc libc6-dev make pkg-config libseccomp-dev busybox-static ca-certificates

if ! find_cargo >/dev/null; then
	say "no cargo of at least $(msrv): taking Debian's rustc-web and cargo-web"
	apt_install rustc-web cargo-web
	find_cargo >/dev/null || die "Debian's cargo-web is older than $(msrv); install Rust $(msrv) or newer, with cargo on PATH, and run this again"
fi
cargo_dir=$(find_cargo)
say "cargo: $("$cargo_dir/cargo" --version) in $cargo_dir"
