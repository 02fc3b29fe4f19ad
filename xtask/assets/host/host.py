"""What the tests share: commands as root and in a login of the plain user, waits, refusals."""

import json
import os
import socket
import subprocess
import time

USER = "tester"
HOME = "/home/tester"
APP_ROOT = HOME + "/.local/share/container"
CONTAINER = "/usr/local/bin/container"
IMAGE = "/usr/local/test/busybox.tar"
# The outside, a network namespace that answers on port 80, and the host's address there.
OUTSIDE, OUTER = "203.0.113.1", "203.0.113.2"
# Asks the outside from a container. The input stays open: Debian 12's pasta loses the end of most
# connections whose inner side has said first that nothing more comes, and `nc` waits for ever.
ASK = f"mkfifo /open; nc -w 10 {OUTSIDE} 80 <>/open"
# Nothing here takes longer on two emulated processors.
PATIENCE = 300

out = None
loud = True


def say(text):
    """A line of the log."""
    if not loud:
        return
    for line in str(text).splitlines():
        out.write(line + "\n")
    out.flush()


class Failed(Exception):
    """Why a test does not hold, in one line."""


def check(holds, why):
    if not holds:
        raise Failed(" ".join(str(why).split()))


class Result:
    """How a command ended, and what it said."""

    def __init__(self, words, done):
        self.words, self.code = words, done.returncode
        self.out = done.stdout.decode(errors="replace").strip()
        self.err = done.stderr.decode(errors="replace").strip()

    def __str__(self):
        return f"{' '.join(self.words)}: exit code {self.code}: {self.err[-400:]} {self.out[-200:]}"

    def ok(self):
        check(self.code == 0, self)
        return self

    def fails(self, code, *parts):
        """Ends with `code`, and its message holds all of `parts`."""
        check(self.code == code, f"exit code {code} was expected: {self}")
        for part in parts:
            check(part in self.err, f"{part!r} is not in the message: {self}")
        return self

    def json(self):
        try:
            return json.loads(self.out)
        except ValueError:
            raise Failed(f"no JSON: {self}")


def run(words, patience=PATIENCE, user=None):
    """Runs a command as root."""
    say("+ " + " ".join(words))
    try:
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True,
                              timeout=patience)
    except subprocess.TimeoutExpired:
        raise Failed(f"{' '.join(words)}: no end within {patience} s")
    result = Result(words, done)
    say(result.out[-2000:])
    say(result.err[-2000:])
    return result


def login(*words, **options):
    """Runs a command in a login session of the plain user, made by PAM as a terminal's is."""
    prefix = ["systemd-run", "--quiet", "--pipe", "--wait", "--collect", "-p", "PAMName=login",
              "-p", "User=" + USER, "-p", "WorkingDirectory=" + HOME, "--"]
    return run(prefix + list(words), **options)


def shell(script, **options):
    """The same for a script of the login shell's."""
    return login("bash", "-lc", script, **options)


def container(*words, **options):
    """`container`, in a login of the plain user."""
    return login(CONTAINER, *words, **options)


def asked(*words, **options):
    """`container`, as the plain user outside of a login: what is asked often must cost little."""
    prefix = ["setpriv", "--reuid=" + USER, "--regid=" + USER, "--init-groups",
              "env", "--ignore-environment", "HOME=" + HOME, "PATH=/usr/local/bin:/usr/bin:/bin"]
    return run(prefix + [CONTAINER, *words], **options)


def as_root(*words, **options):
    """`container`, as root."""
    return run([CONTAINER, *words], **options)


def quiet(call):
    """Calls something that says nothing in the log meanwhile."""
    global loud
    before, loud = loud, False
    try:
        return call()
    finally:
        loud = before


def until(what, condition, patience=PATIENCE, pause=0.5):
    """Waits for a condition, and returns what it returned."""
    say(f"  until {what}")
    end = time.monotonic() + patience
    while True:
        found = quiet(condition)
        if found:
            return found
        check(time.monotonic() < end, f"not within {patience} s: {what}")
        time.sleep(pause)


def read(path):
    """A file's text, or none of it."""
    try:
        with open(path, errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def processes(name, uid=None):
    """Ids of the processes whose program is called so; of one real user where that is given."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        words = read(f"/proc/{pid}/cmdline").split("\0")
        if os.path.basename(words[0]) != name:
            continue
        if uid is None or int(status(pid, "Uid").split()[0]) == uid:
            found.append(int(pid))
    return sorted(found)


def status(pid, field):
    """A field of /proc/PID/status."""
    for line in read(f"/proc/{pid}/status").splitlines():
        if line.startswith(field + ":"):
            return line.split(":", 1)[1].strip()
    return ""


def cgroup(pid):
    """The path of a process in the cgroup tree, version 2."""
    for line in read(f"/proc/{pid}/cgroup").splitlines():
        if line.startswith("0::"):
            return line[3:]
    return ""


def limit(group, name):
    """A limit of a cgroup, as the kernel has it."""
    return read(f"/sys/fs/cgroup{group}/{name}").strip()


def answer(address, port):
    """What somebody says who listens there; nothing: nobody does."""
    try:
        with socket.create_connection((address, port), timeout=5) as stream:
            return stream.makefile().read().strip() or None
    except OSError:
        return None
