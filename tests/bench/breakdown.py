"""Break down iobatch's CPU time per response into parts, in the form that this process uses.

The parts are measured separately, by process_time(), in turn with the whole response:

- System calls: exactly the calls that iob_send makes for this response, recorded and repeated with
  the same arguments. The figure includes Python's cost of making the calls, which the compiled form
  doesn't have, so its rest may be negative.
- addbuf, addfile: only these calls.
- The last iob_send: each response ends with a call that returns IOB_DONE.
- The loops: the program's loops with empty bodies.
- The rest of iob_send: the whole response minus all other parts.

A part that is measured separately finds the processor's caches as the same part left them. So the
rest of iob_send also contains the cache misses that the parts cause one another.

By line: while responses are sent, a timer interrupts the program a thousand times a second, and a
signal handler counts the current line. It is a wall-clock timer, because CPU-time timers fire at
the kernel's tick, four times less often; the program rarely waits. Python runs signal handlers only
after calls and at the end of a loop's pass, so a line with a call also counts for the code since
the previous call. Compiled code has no lines: it counts for the line that calls it.
"""

from __future__ import annotations

import os
import signal
import socket
from collections import Counter
from contextlib import contextmanager
from functools import partial
from linecache import getline
from pathlib import Path
from statistics import median
from time import process_time
from typing import TYPE_CHECKING, Any, TypeVar
from unittest.mock import patch

from iobatch import IOBatch, iob_send
from tests.bench.jobs import Job
from tests.bench.report import format_spread, print_table, run_in_turn
from tests.bench.senders import iobatch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import FrameType
    from typing import BinaryIO

    from tests.bench.jobs import Part
    from tests.bench.report import Options
    from tests.bench.send_workloads import Workload

    # The receiver's port, and the file.
    Place = tuple[int, BinaryIO]
    # Adds a number of responses, or a part of each, to a batch.
    Add = Callable[[IOBatch, Sequence[Part], int, int], None]

SocketT = TypeVar("SocketT", bound=socket.socket)

TARGET = 0.1  # seconds of CPU for the whole responses of a turn
MAX_ENTRIES = 400  # added before a reset(): too few to start the garbage collector
SAMPLE_INTERVAL = 0.001  # seconds
SAMPLE_SECONDS = 3
MAX_LINES = 10  # lines in the table


class Recorder(socket.socket):
    """A blocking connection that records its system calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []

    def record(self, call: Callable[..., Any], *args: Any) -> Any:
        self.calls.append((call, args))
        return call(*args)

    def send(self, *args: Any) -> Any:
        return self.record(super().send, *args)

    def sendmsg(self, *args: Any) -> Any:
        return self.record(super().sendmsg, *args)

    def getsockopt(self, *args: Any) -> Any:
        return self.record(super().getsockopt, *args)

    def setsockopt(self, *args: Any) -> Any:
        return self.record(super().setsockopt, *args)


@contextmanager
def connected(sock: SocketT, port: int, workload: Workload) -> Iterator[SocketT]:
    """Connect as the senders do; on exit wait until the receiver has all bytes."""
    with sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")
        sock.connect(("127.0.0.1", port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, workload.nodelay)
        yield sock
        sock.setblocking(True)
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(100):
            pass


def parts_of(workload: Workload) -> list[Part]:
    """Return the parts of a response: buffers, each with the file range after it."""
    return [(b"h" * head, offset, count) for head, offset, count in workload.parts]


# The parts. Each function returns the CPU seconds per response.


def whole_response(port: int, file: BinaryIO, workload: Workload, rounds: int) -> float:
    with connected(socket.socket(), port, workload) as sock:
        return iobatch(Job(sock, file, workload.nodelay, rounds, parts_of(workload))) / rounds


def system_calls(port: int, file: BinaryIO, workload: Workload, rounds: int) -> float:
    batch = IOBatch()
    with connected(Recorder(), port, workload) as sock:
        add_all(batch, parts_of(workload), file.fileno(), 1)
        sock.calls.clear()
        with (
            patch("iobatch._core.pread", partial(sock.record, os.pread)),
            patch("iobatch._send._sendfile", partial(sock.record, os.sendfile)),
        ):
            nbytes = iob_send(sock, batch)
        if nbytes != workload.size:
            raise RuntimeError(f"one iob_send did not send all of a response: {workload.name}")
        calls = tuple(sock.calls)
        start = process_time()
        for _ in range(rounds):
            for call, args in calls:
                call(*args)
        return (process_time() - start) / rounds


def empty_send(rounds: int) -> float:
    batch = IOBatch()
    with socket.socket() as sock:
        start = process_time()
        for _ in range(rounds):
            while iob_send(sock, batch):
                pass
        return (process_time() - start) / rounds


def time_adding(add: Add, file: BinaryIO, workload: Workload, rounds: int) -> float:
    batch = IOBatch()
    parts, fd = parts_of(workload), file.fileno()
    some = max(1, MAX_ENTRIES // (2 * len(parts)))
    times = max(1, rounds // some)
    seconds = 0.0
    for _ in range(times):
        start = process_time()
        add(batch, parts, fd, some)
        seconds += process_time() - start
        batch.reset()
    return seconds / (times * some)


def add_all(batch: IOBatch, parts: Sequence[Part], fd: int, rounds: int) -> None:
    for _ in range(rounds):
        for head, offset, count in parts:
            batch.addbuf(head)
            if count:
                batch.addfile(fd, offset, count)


def add_buffers(batch: IOBatch, parts: Sequence[Part], fd: int, rounds: int) -> None:
    for _ in range(rounds):
        for head, _offset, count in parts:
            batch.addbuf(head)
            if count:
                pass


def add_nothing(batch: IOBatch, parts: Sequence[Part], fd: int, rounds: int) -> None:
    for _ in range(rounds):
        for _head, _offset, count in parts:
            if count:
                pass


def measure(options: Options, place: Place, workload: Workload) -> dict[str, list[float]]:
    """Return the microseconds of each part in each turn."""
    port, file = place
    rounds = options.rounds(int(TARGET / whole_response(port, file, workload, options.rounds(200))))
    methods: dict[str, Callable[[], float]] = {
        "whole": partial(whole_response, port, file, workload, rounds),
        "calls": partial(system_calls, port, file, workload, rounds),
        "last": partial(empty_send, rounds),
        "all": partial(time_adding, add_all, file, workload, rounds),
        "buffers": partial(time_adding, add_buffers, file, workload, rounds),
        "nothing": partial(time_adding, add_nothing, file, workload, rounds),
    }
    return {
        name: [seconds * 1e6 for seconds in turns]
        for name, turns in run_in_turn(methods, options.turns).items()
    }


def subtract(these: Sequence[float], *others: Sequence[float]) -> list[float]:
    """Subtract the others in each turn."""
    return [this - sum(rest) for this, *rest in zip(these, *others, strict=True)]


def breakdown_of(workload: Workload, took: dict[str, list[float]]) -> dict[str, str]:
    """Return the cells of a workload: its parts."""
    rest = subtract(took["whole"], took["calls"], took["all"], took["last"])
    cells = {
        "iobatch": took["whole"],
        "system calls": took["calls"],
        "addbuf": subtract(took["buffers"], took["nothing"]),
        "addfile": [0.0] if workload.buffers_only else subtract(took["all"], took["buffers"]),
        "the loops": took["nothing"],
        "the last iob_send": took["last"],
        "the rest of iob_send": rest,
    }
    return {name: format_spread(values) for name, values in cells.items()}


def print_lines(options: Options, place: Place, workload: Workload, cpu: float) -> None:
    """Print the lines of code that take most of the time of a workload."""
    port, file = place
    found: Counter[tuple[str, int]] = Counter()

    def sample(_signum: int, frame: FrameType | None) -> None:
        if frame is not None:
            code = frame.f_code
            # f_lineno is None where the code has no line number.
            found[code.co_filename, frame.f_lineno or code.co_firstlineno] += 1

    rounds = options.rounds(int(SAMPLE_SECONDS * 1e6 / cpu))
    with connected(socket.socket(), port, workload) as sock:
        job = Job(sock, file, workload.nodelay, rounds, parts_of(workload))
        before = signal.signal(signal.SIGALRM, sample)
        signal.setitimer(signal.ITIMER_REAL, SAMPLE_INTERVAL, SAMPLE_INTERVAL)
        iobatch(job)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    rows = []
    for (path, number), count in found.most_common(MAX_LINES):
        share = count / found.total()
        code = getline(path, number).strip().replace("|", "\\|")
        rows.append(
            [f"{share * cpu:.2f}", f"{share:.0%}", f"{Path(path).name}:{number}", f"`{code}`"]
        )
    print_table(
        f"send: lines with the most CPU time, {workload.name}, {found.total()} samples",
        ["CPU, us", "share", "line", "code"],
        rows,
    )


def print_breakdown(
    options: Options,
    place: Place,
    workloads: Sequence[Workload],
    by_line: Sequence[Workload],
) -> None:
    """Print the tables."""
    took = {workload.name: measure(options, place, workload) for workload in workloads}
    columns = {workload.name: breakdown_of(workload, took[workload.name]) for workload in workloads}
    first, *_ = columns.values()
    print_table(
        "send: parts of iobatch's CPU time per response, us",
        ["", *columns],
        ([name, *(each[name] for each in columns.values())] for name in first),
    )
    for workload in by_line:
        print_lines(options, place, workload, median(took[workload.name]["whole"]))
