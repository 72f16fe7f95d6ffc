"""The processes of tests/bench/send.py: the senders, one for each method, and the receivers."""

from __future__ import annotations

import os
import select
import shutil
import socket
import subprocess
import sys
import zlib
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Self

from attrs import define, field, frozen

from tests.bench.reader import child_process
from tests.bench.report import report_missing
from tests.bench.send_workloads import WORKLOADS
from tests.bench.senders import METHODS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.bench.report import Options
    from tests.bench.send_workloads import Workload

MSS = 1460
# The compiler flags of each C method.
C_PROGRAMS = {
    "C by hand": [],
    "libowfat": ["-DOWFAT", "-lowfat"],
    "libevent": ["-DLIBEVENT=0", "-levent_core"],
    "libevent, mmap": ["-DLIBEVENT=EVBUF_FS_DISABLE_SENDFILE", "-levent_core"],
}
# The packages of the Python methods that may be missing.
PACKAGES = ["gevent", "tornado", "trio", "twisted", "uvloop"]


@frozen
class Turn:
    """The measurements of a turn.

    Attributes:
        cpu: microseconds per response.
        segments: data segments per response.

    """

    cpu: float
    segments: float


@define
class Sender:
    """A process that sends responses by one method."""

    name: str
    command: Sequence[str | Path]
    path: Path
    data: bytes
    _process: subprocess.Popen[str] = field(init=False)

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()  # closes its standard input, which ends it

    def send(self, port: int, workload: Workload, rounds: int, *, check: bool = False) -> Turn:
        """Send a response `rounds` times to the receiver at a port.

        Args:
            port: the receiver's.
            workload: the response.
            rounds: the number of times.
            check: compare all bytes, by their CRC, and not only their number; the receiver must run
                with `check` too.

        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        words = [
            port,
            int(workload.nodelay),
            rounds,
            self.path,
            *(n for part in workload.parts for n in part),
        ]
        print(*words, file=self._process.stdin, flush=True)
        cpu, segments, total, crc = self._process.stdout.readline().split() or [0, 0, 0, 0]
        wanted = rounds * workload.size, workload.digest(self.data) if check else 0
        if (int(total), int(crc)) != wanted:
            raise RuntimeError(
                f"{self.name} sent other bytes than those of the response: {workload.name}"
            )
        return Turn(float(cpu), int(segments) / rounds)


def receive(listener: socket.socket, processors: Sequence[int], *, check: bool) -> None:
    """Receive from one connection after the other; answer with the number of bytes and their CRC.

    Without `check` the kernel discards the bytes, and the CRC is 0.
    """
    os.sched_setaffinity(0, processors[-1:])
    wait = 0 if len(processors) > 1 else None
    buffer = memoryview(bytearray(1 << 20))
    while True:
        sock, _ = listener.accept()
        with sock:
            poll = select.poll()
            poll.register(sock, select.POLLIN)
            total = crc = 0
            while True:
                while not poll.poll(wait):
                    pass
                size = sock.recv_into(buffer, 0, 0 if check else socket.MSG_TRUNC)
                if not size:
                    break
                total += size
                if check:
                    crc = zlib.crc32(buffer[:size], crc)
            sock.sendall(b"%d %d" % (total, crc))


@contextmanager
def running_receiver(processors: Sequence[int], *, check: bool = False) -> Iterator[int]:
    """Run a receiver; yield its port.

    Args:
        processors: the receiver runs on the last one; it sleeps only if there is no other.
        check: read all bytes, and give connections the MSS of Ethernet, to count segments.

    """
    with socket.socket() as listener:
        if check:
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, MSS)
            # With TCP_NODELAY Linux cuts a segment at the end of the receive window, hence a large
            # window.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        with child_process(partial(receive, check=check), listener, processors):
            yield listener.getsockname()[1]


def find_commands(options: Options, folder: Path) -> dict[str, list[str | Path]]:
    """Return the command of each available method, iobatch first; compile the C programs."""
    result: dict[str, list[str | Path]] = {}
    for name in METHODS:
        if name in PACKAGES and find_spec(name) is None:
            report_missing(options, name, f"pip install {name}")
        else:
            result[name] = [sys.executable, "-m", "tests.bench.senders", name]
    if not shutil.which("cc"):
        report_missing(options, ", ".join(C_PROGRAMS), "no C compiler (cc)")
        return result
    source = Path(__file__).with_name("senders.c")
    for name, flags in C_PROGRAMS.items():
        program = folder / name
        made = subprocess.run(
            ["cc", "-O2", "-o", program, source, *flags],
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        if made.returncode:
            report_missing(options, name, made.stderr)
        else:
            result[name] = [program]
    return result


def count_traced_calls(log: Path) -> list[int]:
    """Return the number of system calls in each job.

    A job reads the process's CPU clock at its start and at its end, and these are system calls.
    """
    counts = []
    inside = False
    for line in log.read_text().splitlines():
        _, call = line.split(maxsplit=1)  # the thread's id; the call
        if call.startswith("clock_gettime(CLOCK_PROCESS_CPUTIME_ID"):
            inside = not inside
            if inside:
                counts.append(0)
        elif inside and not call.startswith(("<", "-", "+")):  # resumed calls, signals, exits
            counts[-1] += 1
    return counts


def trace_system_calls(
    options: Options, sender: Sender, port: int, folder: Path
) -> dict[str, float]:
    """Return the system calls per response, by workload."""
    rounds = options.rounds(10)
    log = folder / "strace"
    workloads = [workload for workload in WORKLOADS if workload.suits(sender.name)]
    command = ["strace", "-f", "-qq", "-o", log, *sender.command]
    with Sender(sender.name, command, sender.path, sender.data) as traced:
        traced.send(port, workloads[-1], 1)  # calls that a process makes only once; not counted
        for workload in workloads:
            traced.send(port, workload, rounds)
    return {
        workload.name: count / rounds
        for workload, count in zip(workloads, count_traced_calls(log)[1:], strict=True)
    }
