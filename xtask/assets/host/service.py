"""The service under systemd: a user's and root's, logins and logouts, the journal."""

import os

from host import (APP_ROOT, ASK, HOME, IMAGE, USER, answer, as_root, asked, cgroup, check,
                  container, limit, processes, run, shell, status, until)


def a_users_socket_starts_the_service():
    """The first use of the socket does; a restart and a kill of the service end no container."""
    _stay()
    container("system", "stop")
    # The stop may have started it.
    shell("systemctl --user enable --now container.socket && "
          "systemctl --user stop container.service").ok()
    check(_service() == "inactive", _service())
    container("run", "-d", "--name", "box", "busybox", "sleep", "100000").ok()
    check(_service() == "active", _service())
    qemu = _qemu("box")
    _has_a_cgroup(qemu, f"/user@{_uid()}.service/")
    check("container-vm-" in container("inspect", "box").ok().out, "inspect tells no cgroup")
    shell("systemctl --user restart container.service").ok()
    check(_qemu("box") == qemu, "another QEMU")
    container("exec", "box", "true").ok()
    before = _apiserver()
    os.kill(before, 9)
    until("another service", lambda: _apiserver() not in (0, before))
    container("exec", "box", "true").ok()
    check(_qemu("box") == qemu, "another QEMU")
    container("delete", "--force", "box").ok()


def a_container_ends_with_the_login_unless_the_user_lingers():
    """Without lingering systemd ends what the user runs; with it containers go on."""
    _stay()
    container("system", "stop")
    shell("systemctl --user enable --now container.socket").ok()
    container("run", "-d", "--name", "box", "busybox", "sleep", "100000").ok()
    run(["loginctl", "enable-linger", USER]).ok()
    qemu = _qemu("box")
    _log_out()
    until("the last session's end", lambda: not _sessions())
    check(os.path.exists(f"/proc/{qemu}"), "the container's VM has ended with the login")
    container("exec", "box", "true").ok()
    check(_qemu("box") == qemu, "another VM")
    run(["loginctl", "disable-linger", USER]).ok()
    _log_out()
    until("the end of the user's manager", lambda: not _manager())
    until("the end of what the user ran", lambda: not _ours())
    _stay()
    about = container("inspect", "box").ok().json()[0]
    check(about["status"] == "stopped", about["status"])
    container("start", "box").ok()
    container("exec", "box", "true").ok()
    container("delete", "--force", "box").ok()


def the_journal_has_the_audits_heads():
    """Heads of the trail are in the journal, and the trail verifies against one of them."""
    def head():
        said = run(["journalctl", "--quiet", "--no-pager", "--output", "cat", "--identifier",
                    "container-audit"]).out
        heads = [line.split()[1] for line in said.splitlines() if line.endswith(" of " + APP_ROOT)]
        return heads and heads[-1]
    found = until("a head in the journal", head)
    container("system", "audit", "verify", "--head", found).ok()
    number, digest = found.split(":")
    wrong = f"{number}:{'0' if digest[0] != '0' else '1'}{digest[1:]}"
    check(container("system", "audit", "verify", "--head", wrong).code != 0, "any head verifies")


def the_logs_answer_predicates():
    """`system logs` shows the services' files and the journal, and of both what a predicate says."""
    _stay()
    container("system", "stop")
    shell("systemctl --user enable --now container.socket").ok()
    container("run", "--rm", "busybox", "true").ok()
    def journal(rest):
        return asked("system", "logs", "--last", "30m", "--predicate",
                     "subsystem == journal AND " + rest).ok().out
    until("a head of the trail", lambda: "head " in journal("category == 'container-audit'"))
    check("container.service" in journal("process == systemd"), "systemd says nothing of the unit")
    check(not journal("process == nobody"), "any process")
    seen = container("system", "logs", "--info", "--debug", "--last", "30m", "--predicate",
                     'process == "container-apiserver"').ok()
    check(seen.out, "no line of the service")
    none = container("system", "logs", "--info", "--debug", "--predicate",
                     'process == "nobody"').ok()
    check(not none.out, none)


def root_has_the_same_with_a_uid_a_vm():
    """The system's unit, two VMs, a uid each; a mount, a port, the outside."""
    # Two services that make templates at once are too much for two emulated processors.
    container("system", "stop")
    run(["systemctl", "start", "container.socket"]).ok()
    as_root("image", "load", "--progress", "none", "--input", IMAGE).ok()
    check(run(["systemctl", "is-active", "container.service"]).out == "active", "no service")
    os.makedirs("/srv/data", exist_ok=True)
    script = "touch /data/mine; chown 33 /data/mine; while true; do echo root | nc -l -p 80; done"
    as_root("run", "-d", "--name", "one", "-v", "/srv/data:/data", "-p", "8081:80", "busybox",
            "sh", "-c", script).ok()
    until("a spare", lambda: as_root("system", "status", "--format", "json").ok().json()["spares"],
          pause=5)
    as_root("run", "-d", "--name", "two", "busybox", "sleep", "100000").ok()
    until("an answer", lambda: answer("127.0.0.1", 8081) == "root")
    check(os.stat("/srv/data/mine").st_uid == 33, "the owner of a file")
    out = as_root("exec", "two", "sh", "-c", ASK).ok()
    check(out.out == "outside", out)
    qemus = [as_root("inspect", name).ok().json()[0]["hypervisorPid"] for name in ("one", "two")]
    uids = [int(status(pid, "Uid").split()[0]) for pid in qemus]
    for qemu in qemus:
        _has_a_cgroup(qemu, "/container.slice/")
    check(len(set(uids)) == 2 and min(uids) >= 1_000_000_000, uids)
    run(["systemctl", "restart", "container.service"]).ok()
    as_root("exec", "two", "true").ok()
    check(all(os.path.exists(f"/proc/{pid}") for pid in qemus), "a VM has ended")
    as_root("delete", "--force", "one", "two").ok()
    run(["systemctl", "stop", "container.service", "container.socket"]).ok()


def _has_a_cgroup(qemu, above):
    """QEMU, and who started it, are in a scope with the limits of a VM of two CPUs and 1 GiB."""
    group = until("a cgroup of the VM's own",
                  lambda: "/container.slice/container-vm-" in cgroup(qemu) and cgroup(qemu))
    check(above in group, group)
    check(cgroup(int(status(qemu, "PPid"))) == group, "the helper is elsewhere")
    limits = [limit(group, name) for name in ("memory.max", "pids.max", "cpu.max")]
    check(limits == [str(1280 << 20), "258", "300000 100000"], limits)


def _uid():
    return os.stat(HOME).st_uid


def _service():
    """The state of the user's unit."""
    return shell("systemctl --user is-active container.service").out


def _apiserver():
    pids = processes("container-apiserver", _uid())
    return pids[0] if pids else 0


def _qemu(name):
    return container("inspect", name).ok().json()[0]["hypervisorPid"]


def _ours():
    names = ("container-apiserver", "container-runtime-linux", "container-network",
             "container-images", "qemu-system-x86_64", "pasta", "passt")
    return [pid for name in names for pid in processes(name, _uid())]


def _sessions():
    """Sessions of the user."""
    listed = run(["loginctl", "list-sessions", "--no-legend"]).out
    return [line for line in listed.splitlines() if USER in line.split()]


def _manager():
    return run(["systemctl", "is-active", f"user@{_uid()}.service"]).out == "active"


def _stay():
    """A login that lasts, as a person's does, so that the user's manager stays."""
    if _sessions():
        return
    run(["systemd-run", "--quiet", "--unit=stays", "-p", "PAMName=login", "-p", "User=" + USER,
         "sleep", "infinity"]).ok()
    until("a session", _sessions)


def _log_out():
    run(["systemctl", "stop", "stays.service"])
