"""Server processes of httpd, asgi and hostile: their start, CPU time, memory and descriptors."""

from __future__ import annotations

import ctypes
import os
import re
import socket
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from attrs import frozen

from tests.bench.report import KIB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

HOST = "127.0.0.1"
# Seconds for a server to start, and for each response that is checked.
TIMEOUT = 30

# What a server does besides sending files. "log": it writes a line for each response to its
# standard output. "gzip": it compresses text on the fly.
Setup = Literal["plain", "TLS", "log", "gzip"]


@frozen
class Program:
    """A server that can be started."""

    name: str
    # Called with a folder, which holds files/, cert.pem and key.pem, and a port.
    command: Callable[[Path, int], Sequence[str]]
    setup: Setup = "plain"


@frozen
class Server:
    """A running server."""

    name: str
    setup: Setup
    port: int
    pid: int
    # The file that is its standard output, opened for appending.
    output: Path

    @property
    def secure(self) -> bool:
        """Whether it serves over TLS."""
        return self.setup == "TLS"

    def cpu(self) -> int:
        """Return the CPU time of all processes of the server so far, in nanoseconds."""
        return sum(map(_cpu_time, _process_tree(self.pid)))

    def memory(self) -> int:
        """Return the bytes of all its processes in memory; a shared page counts once (Pss)."""
        return sum(map(_proportional_set, _process_tree(self.pid)))

    def descriptors(self) -> int:
        """Return the number of open descriptors of all its processes."""
        return sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in _process_tree(self.pid))


@contextmanager
def running(program: Program, home: Path) -> Iterator[Server]:
    """Run a server on CPU 0, and yield it as soon as it accepts connections."""
    # Not every server can bind port 0 and report its port, so a free port is found first.
    with socket.create_server((HOST, 0)) as listener:
        port = listener.getsockname()[1]
    command = ["taskset", "-c", "0", *program.command(home, port)]
    output = home / f"{port}.out"
    with output.open("ab") as file, subprocess.Popen(command, stdout=file) as process:
        try:
            deadline = time.monotonic() + TIMEOUT
            while True:
                try:
                    socket.create_connection((HOST, port)).close()
                    break
                except ConnectionRefusedError:
                    if process.poll() is not None or time.monotonic() > deadline:
                        raise
                    time.sleep(0.02)
            yield Server(program.name, program.setup, port, process.pid, output)
        finally:
            process.terminate()


def _process_tree(pid: int) -> Iterator[int]:
    """Yield the ids of a process and its descendants."""
    yield pid
    for thread in Path(f"/proc/{pid}/task").iterdir():
        for child in (thread / "children").read_text().split():
            yield from _process_tree(int(child))


def _cpu_time(pid: int) -> int:
    """Return the CPU time of a process, in nanoseconds.

    Its CPU-time clock is exact; /proc/PID/stat counts in clock ticks of 10 ms.
    """
    clock = ctypes.c_int()
    if code := ctypes.CDLL(None).clock_getcpuclockid(pid, ctypes.byref(clock)):
        raise OSError(code, os.strerror(code))
    return time.clock_gettime_ns(clock.value)


def _proportional_set(pid: int) -> int:
    """Return the proportional set size of a process, in bytes (proc_pid_smaps(5))."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    found = re.search(r"^Pss: *(\d+) kB", rollup, re.MULTILINE)
    if found is None:
        raise RuntimeError(f"/proc/{pid}/smaps_rollup has no Pss")
    return int(found[1]) * KIB
