#!/bin/sh
# First process of the machine of `cargo xtask bench translation-cache`: mounts the
# distribution's image, runs each program in it, says how long each took, powers off.
b=/bin/busybox
$b mkdir -p /proc /root
$b mount -t proc proc /proc
while read -r module; do
    $b insmod "$module" || echo "insmod $module failed"
done </modules.list
until [ -b /dev/vda ]; do
    $b mount -t devtmpfs dev /dev
    $b sleep 0.05
done
$b mount -t erofs -o ro /dev/vda /root || echo "no root"
$b mount -t tmpfs tmp /root/tmp
$b mount -t proc proc /root/proc
$b mount --bind /dev /root/dev

now() { $b cut -d ' ' -f 1 /proc/uptime; }

# The distance of two times, in hundredths: the shell counts in whole numbers alone.
hundredths() { echo "${1%.*}${1#*.}"; }

measure() {
    name=$1
    shift
    begin=$(now)
    if $b chroot /root /usr/bin/env PATH=/usr/bin:/bin HOME=/tmp "$@" >/dev/null 2>/root/tmp/err; then
        end=$(now)
        echo "TOOK $name $(($(hundredths "$end") - $(hundredths "$begin")))0"
    else
        $b cat /root/tmp/err
        echo "FAILED $name"
    fi
}

cat_source() {
    $b cat >/root/tmp/sort.c <<'END'
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <math.h>
#include <time.h>
#include <unistd.h>
#include <sys/socket.h>
#include <netinet/in.h>
static int by(const void *a, const void *b) { return strcmp(*(char **)a, *(char **)b); }
int main(int argc, char **argv) {
    char line[256], **lines = 0;
    size_t n = 0;
    while (fgets(line, sizeof line, stdin)) {
        lines = realloc(lines, (n + 1) * sizeof *lines);
        lines[n++] = strdup(line);
    }
    qsort(lines, n, sizeof *lines, by);
    for (size_t i = 0; i < n; i++) printf("%zu %f %s", i, sqrt(i), lines[i]);
    return argc > 9 ? socket(AF_INET, SOCK_STREAM, 0) : 0;
}
END
}

cat_source
python='import argparse, asyncio, concurrent.futures, csv, ctypes, decimal, difflib, email, hashlib
import http.server, json, logging, multiprocessing, pathlib, pickle, sqlite3, ssl, subprocess
import tarfile, unittest, urllib.request, xml.etree.ElementTree, zipfile'
sql='create table t(a integer primary key, b text);
with recursive c(n) as (select 1 union all select n + 1 from c where n < 20000)
insert into t select n, hex(randomblob(16)) from c;
create index i on t(b);
select count(*), sum(a), max(b) from t where b between "3" and "C";
select substr(b, 1, 2), count(*) from t group by 1 order by 2 desc limit 5;'
measure python3 python3 -c "$python"
measure gcc gcc -O2 -o /tmp/sort /tmp/sort.c -lm
measure sqlite3 sqlite3 /tmp/t.db "$sql"
# Again: what stayed translated helps.
measure python3-again python3 -c "$python"
measure gcc-again gcc -O2 -o /tmp/sort /tmp/sort.c -lm
echo DONE
$b poweroff -f
