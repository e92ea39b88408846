#!/bin/sh
# Builds the virtual machine of the tests into target/cache/vm: Debian 12 with its own kernel, systemd as the first process, cgroup v2 alone and
# AppArmor. Everything comes from the mirror that this machine's apt uses. What is there is used again until this script changes.
# usage: build.sh      ends with 75 where the packages cannot be fetched or unpacked
set -eu
cd "$(dirname "$0")/../.."
. deploy/setup/lib.sh

cache=$PWD/target/cache/vm
release=bookworm
packages="linux-image-amd64 systemd systemd-sysv dbus udev kmod apparmor procps util-linux mount e2fsprogs iproute2 nftables iptables busybox-static strace
	libseccomp2 ca-certificates"
key=$({ cat "$0"; printf '%s' "$packages"; } | sha256sum | cut -c1-16)

if [ -f "$cache/key" ] && [ "$(cat "$cache/key")" = "$key" ]; then
	say "vm: using the image of target/cache/vm"
	exit 0
fi

[ "$(id -u)" = 0 ] || die "the image of the virtual machine is built as root"
apt_install mmdebstrap qemu-system-x86 e2fsprogs

work=$cache.new
rm -rf "$work"
mkdir -p "$work"
trap 'rm -rf "$work"' EXIT
derive_sources "$release" "$work/sources"
say "vm: Debian $release with its kernel, systemd and AppArmor (some minutes)"
# Its own messages, all of which --quiet would hide, are the only ones that say why it failed.
debootstrap() {
	rm -f "$work/root.tar"
	# shellcheck disable=SC2086
	mmdebstrap --mode=root --variant=minbase --aptopt='Acquire::Retries "3"' --dpkgopt='path-exclude=/usr/share/doc/*' \
		--dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
		--include="$(echo $packages | tr -s ' \n\t' ,)" "$release" "$work/root.tar" "$work"/sources/derived.* >"$work/log" 2>&1
}
debootstrap || {
	say "vm: mmdebstrap failed, trying once more"
	tail -n 20 "$work/log" >&2
	debootstrap
} || {
	tail -n 40 "$work/log" >&2
	say "vm: mmdebstrap failed twice; look at the network and at /etc/apt, then run this again" >&2
	exit 75 # EX_TEMPFAIL of sysexits.h
}

mkdir "$work/root"
tar -C "$work/root" -xf "$work/root.tar"
rm "$work/root.tar"
# 9p carries the checkout; the initramfs need not know it.
cat >"$work/root/etc/systemd/system/coracle-run.service" <<'END'
[Unit]
Description=The command that the virtual machine was started for
After=dbus.socket apparmor.service systemd-tmpfiles-setup.service
OnFailure=poweroff.target
OnSuccess=poweroff.target

[Service]
Type=oneshot
ExecStart=/usr/local/sbin/coracle-run
StandardOutput=journal+console
TimeoutStartSec=infinity
Delegate=yes
LimitNOFILE=1048576
END
cat >"$work/root/usr/local/sbin/coracle-run" <<'END'
#!/bin/sh
# Mounts the checkout where it is on the host, with what is written to it kept in memory, and runs the command that lies in it. Containers' data are
# on the disk: this kernel has no idmapped tmpfs.
status=125
ports=/dev/virtio-ports
for _ in $(seq 600); do
	[ -e $ports/output ] && [ -e $ports/status ] && break
	sleep 0.1
done
exec >$ports/output 2>&1
{
	modprobe 9pnet_virtio && modprobe 9p && modprobe overlay &&
		mkdir -p /run/host /run/write && mount -t 9p -o trans=virtio,version=9p2000.L,msize=524288,cache=loose,ro tree /run/host &&
		mount -t tmpfs -o size=60% tmpfs /run/write && mkdir -p /run/write/upper /run/write/work &&
		top=$(cat /run/host/target/vm/top) && mkdir -p "$top" &&
		mount -t overlay -o lowerdir=/run/host,upperdir=/run/write/upper,workdir=/run/write/work overlay "$top" &&
		cd "$top" && {
		mkdir -p /var/lib/coracle-run "$top/target/run" && mount --bind /var/lib/coracle-run "$top/target/run"
		sh target/vm/command
		status=$?
	}
}
echo "$status" >$ports/status
END
chmod 755 "$work/root/usr/local/sbin/coracle-run"
mkdir -p "$work/root/etc/systemd/system/multi-user.target.wants"
ln -s ../coracle-run.service "$work/root/etc/systemd/system/multi-user.target.wants/coracle-run.service"
echo coracle-vm >"$work/root/etc/hostname"
printf '127.0.0.1\tlocalhost coracle-vm\n' >"$work/root/etc/hosts"
: >"$work/root/etc/machine-id"
echo '/dev/vda / ext4 defaults 0 1' >"$work/root/etc/fstab"
# What only costs time: nobody logs in.
for unit in getty@tty1.service serial-getty@ttyS0.service apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer \
	fstrim.timer systemd-timesyncd.service; do
	ln -sf /dev/null "$work/root/etc/systemd/system/$unit"
done
cp "$work"/root/boot/vmlinuz-* "$work/vmlinuz"
cp "$work"/root/boot/initrd.img-* "$work/initrd"
mkfs.ext4 -q -d "$work/root" -E root_owner=0:0 "$work/root.img" 8G
rm -rf "$work/root" "$work/sources"
echo "$key" >"$work/key"
rm -rf "$cache"
mv "$work" "$cache"
trap - EXIT
say "vm: $(du -sh "$cache" | cut -f1) in target/cache/vm"
