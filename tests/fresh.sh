#!/bin/sh
# Proves the README on a machine that has nothing: a bookworm made by mmdebstrap, with a copy of what is committed.
# usage: tests/fresh.sh [command]      by default "make demo && make test"; FRESH_SOURCES: apt's sources, by default this machine's Debian ones
set -eu
cd "$(dirname "$0")/.."
. deploy/setup/lib.sh

[ "$(id -u)" = 0 ] || die "this makes mounts: run it as root"
command -v mmdebstrap >/dev/null || die "mmdebstrap is missing: apt-get install mmdebstrap"
root=$(mktemp -d "${TMPDIR:-/var/tmp}/coracle-fresh.XXXXXX")
trap 'rm -rf --one-file-system "$root"' EXIT

mmdebstrap --quiet --variant=apt bookworm "$root" "${FRESH_SOURCES:-/etc/apt/sources.list.d/debian.sources}" || die "mmdebstrap failed; look at the network and at FRESH_SOURCES"
cp /etc/resolv.conf "$root/etc/"
cp -r /etc/apt/apt.conf.d "$root/etc/apt/"
mkdir "$root/src" "$root/old"
# The bare system has no umount.
cp /bin/busybox "$root/umount" || die "/bin/busybox is missing: run deploy/setup/tools.sh"
git archive HEAD | tar -x -C "$root/src"
certificates=${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}
[ ! -f "$certificates" ] || cp "$certificates" "$root/certificates.crt"

# pivot_root and not chroot alone: in a chroot the namespace's root stays the machine's, and setns(2) for exec leads there.
unshare --mount --propagation private sh -eu -c '
	mount --bind "$1" "$1"
	cd "$1"
	mount -t proc proc proc
	mount --rbind /sys sys
	mount --rbind /dev dev
	mount -t tmpfs -o nosuid,nodev,noexec,mode=755 tmpfs run
	mount -t tmpfs tmpfs tmp
	pivot_root . old
	/umount -l /old
	rm /umount
	exec env -i HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin SSL_CERT_FILE=/certificates.crt CARGO_HTTP_CAINFO=/certificates.crt sh -c "cd /src && $2"
' fresh "$root" "${1:-apt-get -q update && apt-get -q -y install make && make demo && make test}"
