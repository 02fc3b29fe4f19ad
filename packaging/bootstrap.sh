#!/bin/sh
# Makes sure that what a make target needs is installed.
#
#   packaging/bootstrap.sh [toolchain] [build] [kernel] [demo] [test] [host]
#
# Looks first and touches nothing when everything is there. What is missing is
# announced, then installed from the distribution's own packages; only that (and
# the AppArmor profile that Ubuntu needs) uses sudo.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
arch=$(uname -m)

say() { printf '==> %s\n' "$*" >&2; }
die() { printf 'bootstrap: %s\n' "$*" >&2; exit 1; }

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null 2>&1; then
        say "with sudo: $*"
        sudo "$@"
    else
        die "this needs root, and there is no sudo. As root, run: $*"
    fi
}

# --- packages ---------------------------------------------------------------

packages_for() {
    case $1 in
    toolchain) echo ca-certificates ;;
    build)
        echo gcc libc6-dev make pkg-config ca-certificates dpkg
        # What the file server of bind mounts is linked with.
        echo libcap-ng-dev libseccomp-dev
        # What networks are made with: the way out, and the rules.
        echo passt nftables
        case $arch in
        x86_64) echo qemu-system-x86 ;;
        aarch64) echo qemu-system-arm ;;
        *) die "there is no port to $arch yet" ;;
        esac
        ;;
    # What the kernel's own build needs beside a compiler.
    kernel) echo bc bison flex libelf-dev binutils xz-utils bzip2 ;;
    # libFuzzer is C++.
    fuzz) echo g++ ;;
    demo) echo mmdebstrap uidmap ;;
    test)
        echo erofs-utils e2fsprogs openssl skopeo umoci docker-registry busybox-static
        echo attr libcap2-bin uidmap util-linux zstd xz-utils curl procps
        echo iproute2 iputils-ping dnsmasq-base openssh-client socat tcpdump apache2-utils
        ;;
    # What the emulated host of test-host is made with.
    host) echo mmdebstrap uidmap util-linux e2fsprogs kmod tar ;;
    *) die "unknown set of packages: $1" ;;
    esac
}

is_installed() {
    status=$(dpkg-query -W -f='${Status}' "$1" 2>/dev/null) || return 1
    [ "$status" = "install ok installed" ]
}

install_packages() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get update -q
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "$@"
}

need_packages() {
    missing=
    for package in "$@"; do
        is_installed "$package" || missing="$missing $package"
    done
    [ -n "$missing" ] || return 0
    command -v apt-get >/dev/null 2>&1 ||
        die "not a Debian or Ubuntu system. Install what these packages hold:$missing"
    say "missing packages:$missing"
    # shellcheck disable=SC2086
    install_packages $missing
}

# --- Rust toolchain ---------------------------------------------------------

wanted_rust() { sed -n 's/^rust-version *= *"\(.*\)"/\1/p' "$root/Cargo.toml" | head -n 1; }

# True when the version in $1 is at least the one in $2.
at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }

rust_is_good() {
    command -v cargo >/dev/null 2>&1 && command -v rustc >/dev/null 2>&1 || return 1
    have=$(rustc --version 2>/dev/null | cut -d ' ' -f 2) || return 1
    [ -n "$have" ] && at_least "${have%%-*}" "$1"
}

need_rust() {
    wanted=$(wanted_rust)
    rust_is_good "$wanted" && return 0
    if ! command -v rustup >/dev/null 2>&1; then
        # `apt-cache show` also succeeds for names that only other packages mention.
        if apt-cache policy rustup 2>/dev/null | grep -q 'Candidate: [^(]'; then
            say "a Rust toolchain of at least $wanted is missing: installing the package rustup"
            install_packages rustup
        else
            die "a Rust toolchain of at least $wanted is missing, and this distribution has no
rustup package. Install one with this line, then run make again:
    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile default"
        fi
    fi
    say "installing the stable Rust toolchain with rustup"
    rustup toolchain install stable --profile default
    rustup default stable
    rust_is_good "$wanted" || die "rustup's stable toolchain is older than $wanted"
}

# --- AppArmor ---------------------------------------------------------------

# Ubuntu 24.04 takes all capabilities inside an unprivileged user namespace away
# unless a profile grants them; the jailer needs them to build the jail, and
# container-network to make networks.
need_apparmor_profile() {
    switch=/proc/sys/kernel/apparmor_restrict_unprivileged_userns
    [ -r "$switch" ] && [ "$(cat "$switch")" = 1 ] || return 0
    target=${CARGO_TARGET_DIR:-$root/target}
    "$root/packaging/apparmor/install.sh" --check "$target" && return 0
    say "this system restricts user namespaces: installing an AppArmor profile for container"
    as_root "$root/packaging/apparmor/install.sh" "$target"
}

PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
export PATH

wanted_packages=
for set in "$@"; do
    wanted_packages="$wanted_packages $(packages_for "$set")"
done
# shellcheck disable=SC2086
need_packages $wanted_packages
need_rust
need_apparmor_profile
