#!/bin/sh
# Runs a command in the virtual machine of the tests, as root, in this checkout, which is there at its own path; what is written to it is lost.
# Without KVM a boot takes about a minute. The console is in target/vm/console. Ends with the status of the command.
# usage: run.sh command [argument ...]      VM_TIMEOUT=seconds (1700), VM_MEMORY=megabytes (4096), VM_APPEND=words for the kernel
set -eu
cd "$(dirname "$0")/../.."
. deploy/setup/lib.sh

[ $# -gt 0 ] || die "usage: deploy/vm/run.sh command [argument ...]"
cache=$PWD/target/cache/vm
deploy/vm/build.sh
mkdir -p target/vm target/run
rm -f target/vm/status target/vm/output
printf '%s\n' "$PWD" >target/vm/top
{
	printf 'export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n'
	env | sed -n "s/'/'\\\\''/g; s/^\(CORACLE_[A-Z_]*\|TEST_[A-Z_]*\)=\(.*\)$/export \1='\2'/p"
	printf 'exec'
	for word; do
		printf " '%s'" "$(printf '%s' "$word" | sed "s/'/'\\\\''/g")"
	done
	echo
} >target/vm/command
: >target/vm/output
tail -f -n +1 target/vm/output &
tail=$!
status=0
timeout --signal=KILL "${VM_TIMEOUT:-1700}" qemu-system-x86_64 -accel tcg,thread=multi -cpu max -smp 2 -m "${VM_MEMORY:-4096}" -nodefaults \
	-display none -no-reboot -serial file:target/vm/console \
	-kernel "$cache/vmlinuz" -initrd "$cache/initrd" \
	-append "root=/dev/vda rw console=ttyS0 panic=-1 quiet apparmor=1 security=apparmor systemd.unified_cgroup_hierarchy=1 mitigations=off hugepagesz=2M hugepages=16 psi=1 swapaccount=1 systemd.show_status=0 ${VM_APPEND:-}" \
	-drive "file=$cache/root.img,format=raw,if=virtio,snapshot=on,cache=unsafe" \
	-virtfs "local,path=$PWD,mount_tag=tree,security_model=none,readonly=on,multidevs=remap" \
	-device virtio-serial-pci \
	-chardev file,id=output,path=target/vm/output -device virtserialport,chardev=output,name=output \
	-chardev file,id=status,path=target/vm/status -device virtserialport,chardev=status,name=status \
	-device virtio-rng-pci -nic none || status=$?
sleep 0.2
kill "$tail" 2>/dev/null || :
if [ -s target/vm/status ]; then
	exit "$(tr -dc 0-9 <target/vm/status)"
fi
tail -n 40 target/vm/console >&2
die "the virtual machine ended (status $status) without a word of its command; its console is in target/vm/console"
