"""The processes of tests/bench/send.py: the senders, one for each method, and the receivers."""

from __future__ import annotations

import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import zlib
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Self

from attrs import define, field, frozen

from iobatch import COMPILED
from tests.bench.reader import child_process
from tests.bench.report import report_missing, run_in_turn
from tests.bench.senders import OURS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from tests.bench.report import Options
    from tests.bench.send_workloads import Workload

TARGET = 0.15  # seconds of CPU for a method in a turn
MAX_ROUNDS = 200_000  # responses in a turn
MSS = 1460
PURE = ", pure"  # the suffix of a method of iobatch whose process runs the pure form
# The compiler flags of each C method.
C_PROGRAMS = {
    "C by hand": [],
    "libowfat": ["-DOWFAT", "-lowfat"],
    "libevent": ["-DLIBEVENT=0", "-levent_core"],
    "libevent, mmap": ["-DLIBEVENT=EVBUF_FS_DISABLE_SENDFILE", "-levent_core"],
}
# The packages of the Python methods that may be missing.
PACKAGES = ["aiofastnet", "gevent", "tornado", "trio", "twisted", "uvloop"]


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


def with_pure_form(names: Iterable[str]) -> list[str]:
    """Return the names of methods, with the pure form after each method of iobatch."""
    return [each for name in names for each in ([name, name + PURE] if name in OURS else [name])]


def find_command(name: str, folder: Path) -> list[str | Path]:
    """Return the command of a method; compile a C program.

    Raises:
        LookupError: something that the method needs is missing.

    """
    if name in C_PROGRAMS:
        if not shutil.which("cc"):
            raise LookupError("no C compiler (cc)")
        source, program = Path(__file__).with_name("senders.c"), folder / name
        command = ["cc", "-O2", "-o", program, source, *C_PROGRAMS[name]]
        made = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
        if made.returncode:
            raise LookupError(made.stderr)
        return [program]
    package, *_ = name.split(",")
    if package in PACKAGES and find_spec(package) is None:
        raise LookupError(f"pip install {package}")
    if name in OURS and not COMPILED:
        raise LookupError("not compiled: iobatch.COMPILED is False")
    command = [sys.executable, "-m", "tests.bench.senders", name.removesuffix(PURE)]
    return ["env", "IOBATCH_PURE=1", *command] if name.endswith(PURE) else command


@contextmanager
def running_senders(
    options: Options, names: Iterable[str]
) -> Iterator[tuple[dict[str, Sender], Sequence[int]]]:
    """Run the senders of all available methods; bind this process to the first processor.

    Yields:
        the senders, by method, and the processors that this process was bound to before.

    """
    processors = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, processors[:1])  # inherited by the senders
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        path = folder / "file"
        data = Random(0).randbytes(16 << 20)
        path.write_bytes(data)
        os.sync()  # else the kernel writes the file back while it is sent
        senders = {}
        for name in with_pure_form(names):
            try:
                command = find_command(name, folder)
            except LookupError as exc:
                report_missing(options, name, str(exc))
            else:
                senders[name] = stack.enter_context(Sender(name, command, path, data))
        yield senders, processors


def measure_in_turn(
    options: Options, workload: Workload, senders: Mapping[str, Sender], port: int
) -> dict[str, list[Turn]]:
    """Measure the senders in turn, with as many responses as take about TARGET seconds."""
    some = options.rounds(max(1, min(1000, (8 << 20) // workload.size)))
    methods = {}
    for name, sender in senders.items():
        cpu = sender.send(port, workload, some).cpu  # also warms up
        rounds = options.rounds(max(1, min(MAX_ROUNDS, int(TARGET * 1e6 / cpu))))
        methods[name] = partial(sender.send, port, workload, rounds)
    return run_in_turn(methods, options.turns)


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
    options: Options, sender: Sender, port: int, workloads: Iterable[Workload]
) -> dict[str, float]:
    """Return the system calls per response, by workload."""
    rounds = options.rounds(10)
    log = sender.path.with_name("strace")
    workloads = [workload for workload in workloads if workload.suits(sender.name)]
    command = ["strace", "-f", "-qq", "-o", log, *sender.command]
    with Sender(sender.name, command, sender.path, sender.data) as traced:
        traced.send(port, workloads[-1], 1)  # calls that a process makes only once; not counted
        for workload in workloads:
            traced.send(port, workload, rounds)
    return {
        workload.name: count / rounds
        for workload, count in zip(workloads, count_traced_calls(log)[1:], strict=True)
    }
