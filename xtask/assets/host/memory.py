"""A host that is short of memory: what is only kept ready goes, what runs stays."""

import subprocess
import sys
import time

from host import asked, check, container, quiet, read, run, say, status, until

# Holds as many MiB as the last line says, and is the last that the kernel would kill.
HOLDER = """
import mmap, sys
open("/proc/self/oom_score_adj", "w").write("-1000")
held = []
for line in sys.stdin:
    while len(held) < int(line):
        piece = mmap.mmap(-1, 1 << 20)
        piece.write(b"x" * (1 << 20))
        held.append(piece)
    while len(held) > int(line):
        held.pop().close()
    print(len(held), flush=True)
"""
# What the service looks at (container-apiserver's `pressure`): parts of the memory.
SHORT, NEXT_TO_NOTHING = 10, 32
CACHE_MIB = 256


class Shortage:
    """Takes memory until only so many MiB are available, and keeps it so."""

    def __init__(self):
        self.process = subprocess.Popen([sys.executable, "-c", HOLDER], text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.held = 0

    def leave(self, mib):
        missing = _mib("MemAvailable") - mib
        # In steps, so that what is written back or dropped meanwhile is counted.
        self.held = max(0, self.held + max(-64, min(64, missing)))
        self.process.stdin.write(f"{self.held}\n")
        self.process.stdin.flush()
        self.process.stdout.readline()
        return abs(missing) <= 8

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()


def a_short_host_gives_up_spares_takes_back_memory_and_refuses_starts():
    """Spares go, guests give page cache back, starts are refused; the kernel kills nobody."""
    container("run", "--rm", "busybox", "true").ok()
    # A template that is made beside it would slow it down beyond measure.
    until("a spare", _spares, pause=5)
    container("run", "-d", "--name", "cache", "busybox", "sleep", "100000").ok()
    container("exec", "cache", "sh", "-c",
              f"dd if=/dev/zero of=/root/f bs=1M count={CACHE_MIB} && sync").ok()
    qemu = container("inspect", "cache").ok().json()[0]["hypervisorPid"]
    until("a spare", _spares, pause=5)
    full = _own_mib(qemu)
    check(full > CACHE_MIB, f"the VM holds {full} MiB")
    total, stalled = _mib("MemTotal"), _stalled()
    with Shortage() as shortage:
        short = total // SHORT - total // 50
        until("a short host", lambda: shortage.leave(short), pause=0)
        until("no spare", lambda: shortage.leave(short) and not _spares())
        until("memory of the guest's cache",
              lambda: shortage.leave(short) and _own_mib(qemu) < full - CACHE_MIB // 2)
        say(f"QEMU holds {_own_mib(qemu)} of {full} MiB")
        little = total // NEXT_TO_NOTHING - total // 100
        until("next to nothing left", lambda: shortage.leave(little), pause=0)
        refused = until("a refusal", lambda: shortage.leave(little) and _refusal())
        check("the host is short of memory" in refused.err, refused)
        container("exec", "cache", "true").ok()
        say(read("/proc/pressure/memory"))
        check(_stalled() > stalled, "nobody waited for memory: the test is too gentle")
    check(status(qemu, "State"), "the VM has ended")
    until("a start", lambda: container("run", "--rm", "busybox", "true").code == 0)
    until("a spare again", _spares)
    container("delete", "--force", "cache").ok()
    killed = run(["journalctl", "--dmesg", "--quiet", "--no-pager", "--grep",
                  "Out of memory|oom-kill|invoked oom-killer"])
    check(not killed.out, killed.out)


def _refusal():
    tried = asked("run", "--rm", "busybox", "true")
    return tried if tried.code == 125 else None


def _spares():
    return quiet(lambda: asked("system", "status", "--format", "json").ok().json())["spares"]


def _mib(field):
    for line in read("/proc/meminfo").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) >> 10
    raise KeyError(field)


def _own_mib(pid):
    """What a process alone holds."""
    return int(status(pid, "RssAnon").split()[0]) + int(status(pid, "RssShmem").split()[0]) >> 10


def _stalled():
    """Microseconds for which somebody waited for memory since the boot."""
    return int(read("/proc/pressure/memory").split("total=")[1].split()[0])
