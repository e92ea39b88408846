# make demo, make test: all that a fresh Debian 12 needs is fetched first, as root. Nothing outside of target/ and /run is changed,
# except for missing build packages; containerd, runc and crun are unpacked under target/cache, never installed.

ARCH    := $(shell uname -m)
TARGET  := $(ARCH)-unknown-linux-gnu
RELEASE := target/$(TARGET)/release
CARGO    = PATH="$$(. deploy/setup/lib.sh && find_cargo):$$PATH" cargo
SUITES   = $(wildcard tests/tests/*.rs)

.PHONY: help demo test test-vm test-long bench build deb install uninstall failpoints fmt lint audit clean tools peers

help:
	@echo "make demo       run real containers through the shim and show each command"
	@echo "make test       all tests, on containerd 1.6, 1.7 and 2.x (as root, up to half an hour)"
	@echo "make test-vm    suites in a virtual machine: cgroup v2 alone, systemd, AppArmor (VM_SUITES=all or their names; up to half an hour)"
	@echo "make test-long  the soak tests: thousands of containers and execs"
	@echo "make bench      measure against runc, crun and the kernel's own floor"
	@echo "make build      the release binaries, containerd-shim-coracle-v2 and coracle: $(RELEASE)/"
	@echo "make deb        a Debian package: target/coracle_<version>_<architecture>.deb"
	@echo "make install    install for this machine's containerd (deploy/install.sh, OPTIONS=...); make uninstall"
	@echo "make fmt lint audit clean"

tools:
	@deploy/setup/tools.sh

peers: tools
	@deploy/setup/peers.sh

# Static, and with relative relocations packed: each start of the program reads and applies them.
# The target is named so that these flags reach the program and not the compiler's own plug-ins.
build: tools
	RUSTFLAGS="-C target-feature=+crt-static -C link-arg=-Wl,-z,pack-relative-relocs" $(CARGO) build --release --target $(TARGET) -p shim
	@ls -l $(RELEASE)/containerd-shim-coracle-v2 $(RELEASE)/coracle

deb: build
	@deploy/deb/build.sh $(RELEASE)

install: build
	@deploy/install.sh install $(OPTIONS)

uninstall:
	@deploy/install.sh uninstall $(OPTIONS)

# A second program for the tests that stop the shim at named points; the released one has none of them.
failpoints: tools
	$(CARGO) build -p shim --features failpoints --target-dir target/failpoints

demo: build peers
	@deploy/demo.sh

# What is tested is the program that is shipped, not the one that cargo builds beside the tests. The last lines repeat what is different on
# cgroup v2 alone and on v1 alone, in mount namespaces that have nothing else, where the host has both.
test: export CORACLE_BIN = $(CURDIR)/$(RELEASE)
test: build failpoints peers
	$(CARGO) test --workspace --no-fail-fast
	$(CARGO) test -p runtime-core --features failpoints --target-dir target/failpoints --test launch
	[ -e /sys/fs/cgroup/cgroup.controllers ] || unshare --mount --propagation private sh -c 'mount -t cgroup2 none /sys/fs/cgroup && $(CARGO) test -p tests --test shim_rpc'
	[ ! -e /sys/fs/cgroup/unified/cgroup.controllers ] || unshare --mount --propagation private sh -c 'umount /sys/fs/cgroup/unified && $(CARGO) test -p tests --test shim_rpc --test limits'

# What only a machine of its own shows: cgroup v2 with all controllers, systemd, AppArmor. VM_SUITES=all, or the names of some.
test-vm: export CORACLE_BIN = $(CURDIR)/$(RELEASE)
test-vm: build peers
	deploy/vm/test.sh $(or $(VM_SUITES),core)

test-long: build failpoints peers
	CORACLE_LONG=1 $(CARGO) test -p tests --no-fail-fast

# BENCH_BASE=<directory of an earlier build> measures that beside ours; BENCH_ONLY=core,shim,ctr only some of the comparisons.
bench: build peers
	$(CARGO) run --release -p tests --bin bench

fmt:
	$(CARGO) fmt --all

lint: tools
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings

audit:
	@$(CARGO) deny --version >/dev/null 2>&1 || { echo "audit: cargo-deny is missing; run: cargo install --locked cargo-deny" >&2; exit 1; }
	$(CARGO) deny check

clean:
	$(CARGO) clean
