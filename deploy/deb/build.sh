#!/bin/sh
# Makes the Debian package from what `make build` made: target/coracle_<version>_<architecture>.deb. The same input gives the same bytes.
# usage: build.sh DIR      where the programs are
set -eu
programs=$1
cd "$(dirname "$0")/../.."
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version *= *"\(.*\)"/\1/p' Cargo.toml)
architecture=$(dpkg --print-architecture)
# The time of the last commit, else of the newest change.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || stat -c %Y Cargo.toml)}
export SOURCE_DATE_EPOCH
umask 022
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
chmod 755 "$root"
doc=$root/usr/share/doc/coracle

install -D -m 0755 "$programs/containerd-shim-coracle-v2" "$root/usr/bin/containerd-shim-coracle-v2"
install -D -m 0755 "$programs/coracle" "$root/usr/bin/coracle"
install -D -m 0755 deploy/install.sh "$root/usr/share/coracle/install.sh"
for page in containerd-shim-coracle-v2 coracle; do
	install -d "$root/usr/share/man/man8"
	gzip -9n <"deploy/man/$page.8" >"$root/usr/share/man/man8/$page.8.gz"
done
install -d "$doc/examples"
cp README.md deploy/docs/*.md "$doc/"
cp deploy/containerd/*.toml deploy/docker/daemon.json deploy/kubernetes/*.yaml "$doc/examples/"
cat >"$doc/copyright" <<TEXT
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: Coracle

Files: *
Copyright: the authors of Coracle
License: Apache-2.0
 On Debian systems the full text of the Apache License, version 2.0, is in
 /usr/share/common-licenses/Apache-2.0.
TEXT
gzip -9n >"$doc/changelog.gz" <<TEXT
coracle ($version) unstable; urgency=medium

  * Version $version.

 -- Coracle <coracle@localhost>  $(date -u -R -d "@$SOURCE_DATE_EPOCH")
TEXT
chmod 0644 "$doc"/*.md "$doc/copyright" "$doc/changelog.gz" "$doc"/examples/*
install -d "$root/DEBIAN"
size=$(du -k -s --apparent-size "$root/usr" | cut -f1)
cat >"$root/DEBIAN/control" <<TEXT
Package: coracle
Version: $version
Architecture: $architecture
Maintainer: Coracle <coracle@localhost>
Installed-Size: $size
Recommends: containerd (>= 1.6) | containerd.io
Section: admin
Priority: optional
Description: containerd shim with the OCI runtime inside it
 Coracle makes Linux containers for containerd, Docker and Kubernetes under
 the runtime name io.containerd.coracle.v2. One static program takes the place
 of containerd's shim and of runc.
 .
 ctr finds it at once. For Kubernetes, /usr/share/coracle/install.sh adds a
 handler to containerd's configuration.
TEXT
(cd "$root" && find usr -type f -printf '%P\0' | sort -z | sed -z 's#^#usr/#' | xargs -0 md5sum >DEBIAN/md5sums)
find "$root" -exec touch --no-dereference -d "@$SOURCE_DATE_EPOCH" {} +
package=target/coracle_${version}_$architecture.deb
dpkg-deb --root-owner-group --build "$root" "$package" >/dev/null
printf '%s\n' "$package"
