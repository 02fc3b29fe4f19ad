"""Prints, one a line, what no two machines may share: name, blank, value.

The same program on the same addresses and ports everywhere, so that only the machine's own
secrets make a difference.
"""

import os
import socket
import struct
import sys
import time

SERVER, CLIENT, COOKIE_CLIENT = 5555, 6666, 7777


def say(name, value):
    print(name, value)


def read(path):
    with open(path, "rb") as file:
        return file.read()


def at_random():
    for at in range(0, len(auxv := read("/proc/self/auxv")), 16):
        kind, value = struct.unpack("QQ", auxv[at : at + 16])
        if kind == 25:
            with open("/proc/self/mem", "rb", buffering=0) as memory:
                memory.seek(value)
                return memory.read(16).hex()
    return "none"


def mapping(word):
    for line in read("/proc/self/maps").decode().splitlines():
        if word in line:
            return line.split("-")[0]
    return "none"


def handshake(client_port):
    """Both SYNs on the loopback: their sequence numbers, time stamps and moments."""
    seen = {}
    sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
    sniffer.bind(("lo", 0))
    sniffer.settimeout(5)
    server = socket.socket()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind(("127.0.0.1", SERVER))
    server.listen()
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    client.bind(("127.0.0.1", client_port))
    real, monotonic = time.time_ns(), time.monotonic_ns()
    client.connect(("127.0.0.1", SERVER))
    while len(seen) < 2:
        packet = sniffer.recv(2048)[14:]
        header = (packet[0] & 15) * 4
        if packet[9] != 6:
            continue
        tcp = packet[header:]
        flags = tcp[13] & 0x12
        if flags & 2 and flags not in seen:
            seen[flags] = (struct.unpack("!I", tcp[4:8])[0], stamp(tcp))
    for each in (client, server, sniffer):
        each.close()
    return seen[2], seen[0x12], real, monotonic


def stamp(tcp):
    """The value of the time stamp option."""
    options = tcp[20 : (tcp[12] >> 4) * 4]
    while options and options[0]:
        if options[0] == 1:
            options = options[1:]
            continue
        if options[0] == 8:
            return struct.unpack("!I", options[2:6])[0]
        options = options[options[1] :]
    return 0


def network():
    (syn, syn_stamp), (ack, _), real, monotonic = handshake(CLIENT)
    # A sequence number is a secret of the addresses and ports, and a clock of 64 ns; a time stamp
    # is a secret of the addresses, and a clock of 1 ms. What is left is the secret.
    say("~sequence-of-client", (syn - (real >> 6)) % 2**32)
    say("~sequence-of-server", (ack - (real >> 6)) % 2**32)
    say("~timestamp", (syn_stamp - monotonic // 1_000_000) % 2**32)
    with open("/proc/sys/net/ipv4/tcp_syncookies", "w") as switch:
        switch.write("2")
    (syn, _), (cookie, _), _, _ = handshake(COOKIE_CLIENT)
    # A cookie is a secret of addresses and ports and of the minute, and the client's number.
    say("syn-cookie", (cookie - syn) % 2**32)


say("uuid", read("/proc/sys/kernel/random/uuid").decode().strip())
with open("/dev/urandom", "rb") as urandom:
    say("stream", urandom.read(32).hex())
say("getrandom", os.getrandom(32).hex())
say("boot-id", read("/proc/sys/kernel/random/boot_id").decode().strip())
say("hostname", socket.gethostname())
say("hash-seed", hash("a"))
say("at-random", at_random())
say("stack", mapping("[stack]"))
say("heap", mapping("[heap]"))
say("libraries", mapping("libc"))
say("machine-id", (read("/etc/machine-id") if os.path.exists("/etc/machine-id") else b"none").decode().strip() or "none")
network()
say("clock", time.time())
print("done")
sys.stdout.flush()
time.sleep(1000)
