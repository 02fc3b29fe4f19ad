#!/bin/sh
# Makes a host of what mmdebstrap installed below $1.
set -eu
root=$1

echo host >"$root/etc/hostname"
printf '127.0.0.1 localhost\n::1 localhost\n127.0.1.1 host\n' >"$root/etc/hosts"
cat >"$root/etc/fstab" <<'FSTAB'
LABEL=product /usr/local ext4 ro,noatime 0 0
FSTAB

# An ordinary login with a range of sub-uids, and another one.
chroot "$root" useradd --create-home --shell /bin/bash --groups kvm tester
chroot "$root" useradd --create-home --shell /bin/bash --groups kvm other
grep -q '^tester:' "$root/etc/subuid"
grep -q '^tester:' "$root/etc/subgid"
chroot "$root" passwd --quiet --delete root

mkdir -p "$root/etc/systemd/system/user@.service.d"
printf '[Service]\nDelegate=yes\n' >"$root/etc/systemd/system/user@.service.d/delegate.conf"
echo 'kernel.yama.ptrace_scope = 1' >"$root/etc/sysctl.d/60-yama.conf"
printf 'tun\nkvm-amd\n' >"$root/etc/modules-load.d/host.conf"
# An emulated machine on a busy one loads modules for minutes.
for manager in system user; do
    mkdir -p "$root/etc/systemd/$manager.conf.d"
    printf '[Manager]\nDefaultTimeoutStartSec=600\n' >"$root/etc/systemd/$manager.conf.d/host.conf"
done
mkdir -p "$root/etc/systemd/journald.conf.d"
printf '[Journal]\nRateLimitIntervalSec=0\n' >"$root/etc/systemd/journald.conf.d/host.conf"

mkdir -p "$root/etc/systemd/system/serial-getty@ttyS0.service.d"
cat >"$root/etc/systemd/system/serial-getty@ttyS0.service.d/autologin.conf" <<'GETTY'
[Unit]
ConditionKernelCommandLine=host-shell
[Service]
ExecStart=
ExecStart=-/sbin/agetty --autologin root --keep-baud 115200 %I linux
GETTY

cat >"$root/etc/systemd/system/host-test.service" <<'UNIT'
[Unit]
Description=Tests of container on a whole host
ConditionKernelCommandLine=host-test
RequiresMountsFor=/usr/local
After=multi-user.target systemd-logind.service dbus.service
SuccessAction=poweroff-force
FailureAction=poweroff-force
[Service]
Type=oneshot
ExecStart=/usr/bin/python3 -B /usr/local/test/run.py
TimeoutStartSec=infinity
[Install]
WantedBy=graphical.target
UNIT
mkdir -p "$root/etc/systemd/system/graphical.target.wants"
ln -s ../host-test.service "$root/etc/systemd/system/graphical.target.wants/"

for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer \
    e2scrub_reap.service fstrim.timer systemd-timesyncd.service getty@tty1.service; do
    ln -sf /dev/null "$root/etc/systemd/system/$unit"
done
rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/*
