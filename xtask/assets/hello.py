"""Says where it runs, and what came through its standard input."""
import hashlib
import os
import sys

print(f"python {sys.version.split()[0]} as pid {os.getpid()} on {os.uname().release}")
if not os.isatty(0):
    data = sys.stdin.buffer.read()
    if data:
        print(f"{hashlib.sha256(data).hexdigest()}  {len(data)} bytes of standard input")
