"""An ordinary login: everything that containers do without root on a host as people have them."""

import os
import pwd
import socket
import threading

from host import (APP_ROOT, ASK, CONTAINER, HOME, IMAGE, OUTER, OUTSIDE, USER, answer, cgroup,
                  check, container, processes, read, run, shell, status, until)

# What the outside does.
ANSWER = "import socket; s = socket.create_server(('', 80)); " \
    "[(c := s.accept()[0]).sendall(b'outside\\n') or c.close() for _ in iter(int, 1)]"
# The first id of the user's range.
FIRST = int(read("/etc/subuid").split(USER + ":")[1].split(":")[0])


def the_host_is_as_hosts_are():
    """systemd is there, with cgroup 2 delegated to the user, Yama, AppArmor, a journal, KVM."""
    check(read("/proc/1/comm").strip() == "systemd", "PID 1 is not systemd")
    check(os.path.exists("/sys/fs/cgroup/cgroup.controllers"), "no unified cgroup tree")
    check(read("/proc/sys/kernel/yama/ptrace_scope").strip() == "1", "Yama is off")
    check(read("/sys/module/apparmor/parameters/enabled").strip() == "Y", "AppArmor is off")
    check(os.path.exists("/proc/pressure/memory"), "no pressure is told")
    check(os.path.exists("/dev/kvm"), "no KVM")
    for words in (["ip", "netns", "add", "outside"],
                  ["ip", "link", "add", "up0", "type", "veth", "peer", "out0", "netns", "outside"],
                  ["ip", "addr", "add", OUTER + "/24", "dev", "up0"],
                  ["ip", "link", "set", "up0", "up"],
                  ["ip", "-n", "outside", "addr", "add", OUTSIDE + "/24", "dev", "out0"],
                  ["ip", "-n", "outside", "link", "set", "out0", "up"],
                  ["ip", "route", "add", "default", "via", OUTSIDE],
                  ["systemd-run", "--quiet", "--unit=outside", "ip", "netns", "exec", "outside",
                   "python3", "-c", ANSWER]):
        run(words).ok()
    until("the outside answers", lambda: answer(OUTSIDE, 80) == "outside")
    groups = shell("id -Gn; cat /proc/self/cgroup; echo $XDG_RUNTIME_DIR").ok().out
    check("kvm" in groups and "/session-" in groups and "/run/user/" in groups, groups)
    # Chosen by proof is what `make test-kvm` tests; here other things run meanwhile.
    configure = "mkdir -p .config/container && cp /etc/container/config.toml .config/container"
    os.makedirs("/etc/container")
    with open("/etc/container/config.toml", "w") as file:
        file.write('[runtime]\naccelerator = "kvm"\n\n[audit]\nanchor_seconds = 5\n')
    shell(configure).ok()
    container("image", "load", "--progress", "none", "--input", IMAGE).ok()


def a_container_runs_with_kvm():
    """`run` without further words: KVM, the default network, the program's exit code."""
    about = container("system", "status", "--format", "json").ok().json()
    check(about["accelerator"] == "kvm", about)
    check(not about.get("problems"), about)
    script = "ip addr; grep -cw svm /proc/cpuinfo; exit 42"
    seen = container("run", "--rm", "busybox", "sh", "-c", script)
    check(seen.code == 42, seen)
    check("192.168.64." in seen.out and seen.out.endswith("\n0"), seen)


def a_container_reaches_the_outside_and_not_the_host():
    """The way out is pasta's; what listens on the host's addresses is not on it."""
    with socket.create_server((OUTER, 81)) as server:
        server.settimeout(600)
        reached = []
        threading.Thread(target=lambda: reached.append(_accepts(server)), daemon=True).start()
        script = f"{ASK}; nc -w 5 {OUTER} 81 </dev/null && echo in; " \
            "nc -w 5 127.0.0.1 81 </dev/null && echo in; true"
        seen = container("run", "--rm", "busybox", "sh", "-c", script).ok()
        check(seen.out == "outside" and not reached, seen)
    check(processes("pasta", uid=_uid()) or processes("passt", uid=_uid()), "no pasta runs")


def a_published_port_is_reached():
    """From the user's own loopback address, while the container runs, and not afterwards."""
    serve = "while true; do echo inside | nc -l -p 80; done"
    container("run", "-d", "--name", "web", "-p", "8080:80", "busybox", "sh", "-c", serve).ok()
    until("an answer", lambda: answer("127.0.0.1", 8080) == "inside")
    container("delete", "--force", "web").ok()
    until("no answer", lambda: answer("127.0.0.1", 8080) is None)


def a_mounts_files_belong_to_the_user_and_the_range():
    """root's files are the user's, those of other ids come from /etc/subuid."""
    shell("mkdir data && echo here >data/there").ok()
    script = "cat /data/there; touch /data/mine /data/given; chown 33:34 /data/given; " \
        "stat -c %u:%g /data/mine /data/given"
    seen = container("run", "--rm", "-v", HOME + "/data:/data", "busybox", "sh", "-c", script)
    check(seen.ok().out == "here\n0:0\n33:34", seen)
    owners = {name: (os.stat(f"{HOME}/data/{name}").st_uid, os.stat(f"{HOME}/data/{name}").st_gid)
              for name in ("mine", "given")}
    check(owners["mine"] == (_uid(), _uid()), owners)
    check(owners["given"] == (FIRST + 32, FIRST + 33), owners)


def a_container_without_memory_says_so():
    """`inspect` tells which process was killed, and at what limit."""
    grow = 'BEGIN { s = sprintf("%4096s", ""); for (;;) a[i++] = s }'
    container("run", "--name", "full", "-m", "256m", "busybox", "awk", grow).fails(
        137, "out of memory")
    about = container("inspect", "full").ok().json()[0]
    check(about["exit"]["outOfMemory"] is True, about["exit"])
    check(about["outOfMemoryKills"][-1]["process"] == "awk", about["outOfMemoryKills"])
    check(about["outOfMemoryKills"][-1]["limitInBytes"] <= 256 << 20, about["outOfMemoryKills"])
    container("delete", "full").ok()


def qemu_is_confined():
    """No capability, no new privileges, a filter, namespaces of its own; nobody else may ask."""
    container("run", "-d", "--name", "box", "busybox", "sleep", "100000").ok()
    about = container("inspect", "box").ok().json()[0]
    pid = about["hypervisorPid"]
    for field, wanted in (("CapEff", "0" * 16), ("NoNewPrivs", "1"), ("Seccomp", "2")):
        check(status(pid, field) == wanted, f"{field}: {status(pid, field)}")
    for kind in ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup"):
        check(os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/1/ns/{kind}"),
              f"QEMU has the host's {kind} namespace")
    check("/user-%d.slice/" % _uid() in cgroup(pid), cgroup(pid))
    container("exec", "box", "true").ok()
    other = run(["runuser", "-u", "other", "--", CONTAINER, "--app-root", APP_ROOT, "list"])
    check(other.code == 125, other)
    container("delete", "--force", "box").ok()


def _uid():
    return pwd.getpwnam(USER).pw_uid


def _accepts(server):
    try:
        return server.accept()
    except OSError:
        return None
