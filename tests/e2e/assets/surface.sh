# What of a guest a program in it can reach, one line each; for docs/security.md (cargo xtask surface).
# The kernel is closed once the drivers of later parts are there.
while [ "$(cat /proc/sys/kernel/modules_disabled)" != 1 ]; do sleep 0.1; done
name() { basename "$(readlink "$1" 2>/dev/null || echo none)"; }
for device in /sys/bus/pci/devices/*; do
    echo "PCI device $(cut -c 3- "$device/vendor"):$(cut -c 3- "$device/device"), driver $(name "$device/driver")"
done | sort | uniq -c | while read -r count line; do echo "$line, $count"; done
for device in /sys/bus/virtio/devices/*; do
    echo "virtio device, driver $(name "$device/driver")"
done | sort | uniq -c | while read -r count line; do echo "$line, $count"; done
cat /sys/class/virtio-ports/*/name 2>/dev/null | sort | while read -r port; do echo "virtio-serial port $port"; done
cut -d ' ' -f 1 /proc/modules 2>/dev/null | sort | while read -r module; do echo "kernel module $module"; done
for table in tcp tcp6 udp udp6; do
    echo "listening sockets of $table, $(awk 'NR > 1 && ($4 == "0A" || FILENAME ~ /udp/)' "/proc/net/$table" 2>/dev/null | wc -l)"
done
echo "listening unix sockets, $(awk 'NR > 1 && $4 == "00010000"' /proc/net/unix | wc -l)"
