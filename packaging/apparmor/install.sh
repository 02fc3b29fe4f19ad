#!/bin/sh
# Installs the AppArmor profile of container's jailer and network service, for one place.
#
#   packaging/apparmor/install.sh [--check] TARGET_DIR | PREFIX
#
# --check only says (by exit code) whether the profile is in place.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
check=no
if [ "${1:-}" = --check ]; then check=yes; shift; fi
place=${1:?usage: install.sh [--check] TARGET_DIR | PREFIX}

case $place in
/*) ;;
*) place=$(pwd)/$place ;;
esac
# One pattern covers a build tree ({release,debug}/) and an installation.
programs="$place/{release,debug,bin,libexec/container}/container-{jailer,network}"
name=container-jailer$(printf '%s' "$place" | tr -c 'A-Za-z0-9' '-')
file=/etc/apparmor.d/$name

wanted=$(sed -e "s|@PROGRAMS@|$programs|" -e "s|@NAME@|$name|" "$here/container-jailer.in")

if [ -r "$file" ] && [ "$(cat "$file")" = "$wanted" ]; then exit 0; fi
[ "$check" = no ] || exit 1

printf '%s\n' "$wanted" >"$file"
apparmor_parser --replace "$file"
echo "installed $file"
