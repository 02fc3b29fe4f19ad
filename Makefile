# Every target first makes sure that its tools are there (packaging/bootstrap.sh),
# then hands over to `cargo xtask`. A second call finds everything in place.

PREFIX  ?= /usr/local
DESTDIR ?=
# `make test QEMU=DIR KERNEL=DIR` repeats the end-to-end tests with another QEMU or
# guest kernel; `cargo xtask variant` prepares both from the distribution's backports.
QEMU    ?=
KERNEL  ?=
# `make test-host TESTS=NAME` runs some of its tests; `cargo xtask test-host --shell` opens a shell.
TESTS   ?=
# `make soak MOMENTS=20 SEED=7`: fewer moments, other ones.
MOMENTS ?=
SEED    ?=
# `make kernel KVM=1` builds the guest kernel with KVM in it.
KVM     ?=

# `make fuzz TARGETS='frames agent' SECONDS=60`
TARGETS ?=
SECONDS ?= 600

export PATH := $(PATH):$(HOME)/.cargo/bin
bootstrap := packaging/bootstrap.sh

.PHONY: help build kernel demo test test-kvm test-host soak bench install uninstall lint advisories fuzz clean

help:
	@echo 'make build            release binaries and the guest kernel, in target/'
	@echo 'make kernel           a slim guest kernel from source, optional   [KVM=1]'
	@echo 'make demo             build, make a Debian image and run it in its own VM'
	@echo 'make test             unit and end-to-end tests   [QEMU=DIR] [KERNEL=DIR]'
	@echo 'make test-kvm         the KVM path, inside an emulated machine that offers SVM'
	@echo 'make test-host        what needs a whole host with systemd, in an emulated one [TESTS=]'
	@echo 'make soak             every process killed at 200 moments, hours   [MOMENTS=] [SEED=]'
	@echo 'make bench            the benchmarks of docs/benchmarks.md'
	@echo 'make lint             rustfmt, clippy, licences and sources of dependencies'
	@echo 'make advisories       known weaknesses of dependencies (cargo-deny, needs the network)'
	@echo 'make fuzz             every fuzz target for SECONDS=$(SECONDS)   [TARGETS=]'
	@echo 'make install          into PREFIX=$(PREFIX), below DESTDIR=$(DESTDIR)'
	@echo 'make uninstall        what install put there'
	@echo 'make clean            what was built'

build:
	@$(bootstrap) build
	@cargo xtask build

kernel:
	@$(bootstrap) build kernel
	@cargo xtask slim-kernel $(if $(KVM),--kvm)

demo:
	@$(bootstrap) build demo
	@cargo xtask demo

test:
	@$(bootstrap) build demo test
	@cargo xtask test $(if $(QEMU),--qemu '$(QEMU)') $(if $(KERNEL),--kernel '$(KERNEL)')

test-kvm:
	@$(bootstrap) build demo test
	@cargo xtask test-kvm

test-host:
	@$(bootstrap) build demo test host
	@cargo xtask test-host $(TESTS)

# Hours: every process is killed at 200 moments. docs/reliability.md has the figures.
soak:
	@$(bootstrap) build demo test
	@cargo xtask soak $(if $(MOMENTS),--moments '$(MOMENTS)') $(if $(SEED),--seed '$(SEED)')

bench:
	@$(bootstrap) build demo test
	@cargo xtask bench

lint:
	@$(bootstrap) toolchain
	@cargo xtask lint

# The list of weaknesses is fetched from where cargo-deny's makers keep it.
advisories:
	@$(bootstrap) toolchain
	@command -v cargo-deny >/dev/null || cargo install --locked cargo-deny
	@cargo deny check advisories

fuzz:
	@$(bootstrap) build fuzz
	@cargo xtask fuzz --seconds '$(SECONDS)' $(TARGETS)

# Nothing is compiled as root: run `make build` first when installing with sudo.
install:
	@$(bootstrap) build
	@cargo xtask install --prefix '$(PREFIX)' --destdir '$(DESTDIR)'

uninstall:
	@cargo xtask uninstall --prefix '$(PREFIX)' --destdir '$(DESTDIR)'

clean:
	cargo clean
