#!/bin/sh
# First process of the machine that `make test-kvm` boots: loads KVM, runs one
# container with the accelerator left to choose, prints what it saw, powers off.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export HOME=/root

mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts pts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t tmpfs run /run
mount -t tmpfs tmp /tmp
mount -t cgroup2 cgroup /sys/fs/cgroup
hostname outer
ip link set lo up 2>/dev/null

depmod -a
modprobe kvm-amd || modprobe kvm-intel
# udev is not there to do this.
grep -q '^kvm:' /etc/group || echo 'kvm:x:999:' >>/etc/group
chgrp kvm /dev/kvm && chmod 660 /dev/kvm
[ -c /dev/kvm ] && echo "PROOF kvm-device"

# Every step has a deadline: the machine must power off whatever happens.
step() {
    echo "+ $*"
    timeout 200 "$@"
}

step container system start
step container image load --progress none --input /test/busybox.tar
status=$(timeout 60 container system status --format json)
echo "$status"
case $(echo "$status" | tr -d ' \n') in
*'"accelerator":"kvm"'*) echo "PROOF accelerator=kvm" ;;
esac
step container run --progress none --network none --rm busybox sh -c 'uname -a; exit 42'
echo "PROOF run=$?"
# An emulated CPU that runs two virtual machines at the same moment resets one now and then.
quiet() {
    for _ in $(seq 100); do
        timeout 60 container system status --format json | grep -q 'being made' || return
        sleep 1
    done
}
quiet
# The outer machine's CPU can run VMs, that of its guests can't.
masked=$(timeout 200 container run --progress none --network none --rm busybox grep -cw svm /proc/cpuinfo)
[ "$masked" = 0 ] && grep -qw svm /proc/cpuinfo && echo "PROOF svm-masked"
quiet
step container run -d --network none --name seen busybox sleep 100
# Other QEMUs may be there beside it: a spare's.
for pid in $(pidof qemu-system-x86_64); do
    tr '\0' ' ' </proc/"$pid"/cmdline
    echo
done 2>/dev/null | grep -qE 'accel[= ]kvm' && echo "PROOF qemu-kvm"
step container delete --force seen
step container system stop
for log in /var/lib/container/logs/*.log; do
    echo "--- $log"
    tail -n 5 "$log"
done
sync
echo o >/proc/sysrq-trigger
sleep 60
