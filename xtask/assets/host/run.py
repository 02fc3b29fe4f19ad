"""Runs the tests that the kernel's command line names, all without names.

Each is a function; its first line says what it proves. The verdicts go to the second serial
port, where `cargo xtask test-host` reads them (xtask/src/host/verdicts.rs).
"""

import inspect
import time
import traceback

import host
import login
import memory
import service


def tests():
    """In the order of the files: later ones use what earlier ones have left."""
    for module in (login, service, memory):
        for name, test in inspect.getmembers(module, inspect.isfunction):
            if test.__module__ == module.__name__ and not name.startswith("_"):
                yield name, test.__code__.co_firstlineno, module, test


def ordered():
    modules = [login, service, memory]
    return sorted(tests(), key=lambda test: (modules.index(test[2]), test[1]))


def wanted():
    for word in host.read("/proc/cmdline").split():
        if word.startswith("host-test="):
            return [name for name in word.split("=", 1)[1].split(",") if name]
    return []


def one(name, test):
    host.out.write(f"BEGIN {name}\n")
    begun = time.monotonic()
    try:
        test()
        verdict, why = "ok", ""
    except host.Failed as failed:
        verdict, why = "FAILED", str(failed)
    except Exception as error:
        host.say(traceback.format_exc())
        verdict, why = "FAILED", " ".join(repr(error).split())
    if verdict != "ok":
        evidence()
    seconds = round(time.monotonic() - begun)
    host.out.write(f"END {name} {verdict} {seconds} {why}".rstrip()[:2000] + "\n")
    host.out.flush()


def evidence():
    """What helps to understand a failure."""
    script = """
    journalctl --no-pager --quiet --lines 40 --output short-monotonic
    for root in /home/tester/.local/share/container /var/lib/container; do
        for log in $root/logs/*.log $root/containers/*/runtime.log; do
            echo "==> $log"
            grep -v '"operation":"status"' "$log" | tail -n 20
        done
    done
    """
    done = host.subprocess.run(script, shell=True, capture_output=True)
    host.say(done.stdout.decode(errors="replace"))


def main():
    with open("/dev/ttyS1", "w", buffering=1) as host.out:
        names = wanted()
        if any(not any(test[0].startswith(name) for test in tests()) for name in names):
            host.out.write("DONE 0\n")
            return
        # The first makes the host that all others need.
        chosen = [(name, test) for at, (name, _, _, test) in enumerate(ordered())
                  if at == 0 or not names or any(name.startswith(wanted) for wanted in names)]
        for name, test in chosen:
            one(name, test)
        host.out.write(f"DONE {len(chosen)}\n")
        host.out.flush()
        host.os.sync()


main()
