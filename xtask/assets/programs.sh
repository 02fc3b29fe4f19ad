#!/bin/sh
# Leaves out of the image of programs what its tests do not need: the cluster that the package
# makes, and half of the size: the compiler of queries, which PostgreSQL does without.
set -eu
cd "$1"
rm -rf var/lib/postgresql/*/ etc/postgresql/*/ usr/lib/postgresql/*/lib/bitcode usr/lib/*/libLLVM* \
    usr/lib/*/libz3* usr/share/doc usr/share/man usr/share/i18n usr/share/locale
