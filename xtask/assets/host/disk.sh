#!/bin/sh
# disk.sh DISK SIZE LABEL TREE            an ext4 file system with what is in TREE
# disk.sh DISK SIZE LABEL TAR MODULES     the same of TAR, with the kernel's modules
set -eu
disk=$1 size=$2 label=$3 source=$4 modules=${5:-}
PATH=$PATH:/usr/sbin:/sbin
work=
trap 'rm -rf "$disk.new" $work' EXIT
rm -f "$disk.new"
if [ -n "$modules" ]; then
    work=$disk.tree
    rm -rf "$work"
    mkdir "$work"
    tar --extract --numeric-owner --xattrs --xattrs-include='*' --exclude='./dev/*' \
        --directory "$work" --file "$source"
    mkdir -p "$work/usr/lib/modules"
    cp -r --no-preserve=ownership "$modules/." "$work/usr/lib/modules/"
    for version in "$work"/usr/lib/modules/*; do
        depmod --basedir "$work" "${version##*/}"
    done
    source=$work
fi
mkfs.ext4 -q -L "$label" -E root_owner=0:0 -d "$source" "$disk.new" "$size"
mv "$disk.new" "$disk"
