"""Where iobatch spends the time of a response, and what it would have to save.

The parts are measured alone, by process_time(), in turn with the whole:

- System calls: just those that iob_send makes for this response, with the same arguments, which
  were recorded. It is what Python takes to make them, beside the kernel's part of it.
- addbuf, addfile: nothing but these calls.
- The last iob_send: each response ends with a call that says that there is no more.
- The loops: those of the program, around nothing.
- The rest of iob_send is what is left of the whole.

Alone, each part finds the processor's caches as it left them itself, so the rest of iob_send holds
what they cost one another.

"At most" is what a goal allows, by what libowfat took in the same turn. Where the system calls
alone take more than that, as Python makes them, nothing that is saved between them is enough: they
would have to be others, or fewer.

By line: while responses are sent, a timer of the kernel stops the program a thousand times in a
second, and where it stands is counted. It is a timer by the clock, since one by CPU time goes at
the kernel's own pace, four times as slow; the program seldom waits. Python looks for signals behind
calls and where loops begin again, so a line that calls something also stands for what was done
since the call before.
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
from tests.bench.report import in_turn, spread, table
from tests.bench.senders import Job, iobatch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import FrameType
    from typing import BinaryIO

    from tests.bench.report import Options
    from tests.bench.send import Sender, Work
    from tests.bench.senders import Part

    # Where to connect to, and the file.
    Place = tuple[int, BinaryIO]
    # Adds a response so often to a batch, or does a part of that.
    Add = Callable[[IOBatch, Sequence[Part], int, int], None]

SocketT = TypeVar("SocketT", bound=socket.socket)

TARGET = 0.1  # seconds that the whole gets in a turn
ENTRIES = 400  # so many are added before they are dropped again: too few to wake the collector
INTERVAL = 0.001
SECONDS = 3  # of samples
LINES = 10  # are shown


class Recorder(socket.socket):
    """A blocking connection that records what is called."""

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
def connected(sock: SocketT, port: int, work: Work) -> Iterator[SocketT]:
    """Connect as the senders do, and wait until the receiver has everything."""
    with sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")
        sock.connect(("127.0.0.1", port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, work.nodelay)
        yield sock
        sock.setblocking(True)
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(100):
            pass


def filled(work: Work) -> list[Part]:
    """Return what the work's parts are: a buffer, and the range behind it."""
    return [(b"h" * head, offset, count) for head, offset, count in work.parts]


# The parts. Each returns the CPU seconds of a response.


def whole(port: int, file: BinaryIO, work: Work, rounds: int) -> float:
    with connected(socket.socket(), port, work) as sock:
        return iobatch(Job(sock, file, work.nodelay, rounds, filled(work))) / rounds


def system_calls(port: int, file: BinaryIO, work: Work, rounds: int) -> float:
    batch = IOBatch()
    with connected(Recorder(), port, work) as sock:
        add_all(batch, filled(work), file.fileno(), 1)
        sock.calls.clear()
        with (
            patch("iobatch._core.pread", partial(sock.record, os.pread)),
            patch("iobatch._send._sendfile", partial(sock.record, os.sendfile)),
        ):
            nbytes = iob_send(sock, batch)
        if nbytes != work.size:
            raise RuntimeError(f"{work.name} took more than one iob_send")
        calls = tuple(sock.calls)
        start = process_time()
        for _ in range(rounds):
            for call, args in calls:
                call(*args)
        return (process_time() - start) / rounds


def last_send(rounds: int) -> float:
    batch = IOBatch()
    with socket.socket() as sock:
        start = process_time()
        for _ in range(rounds):
            while iob_send(sock, batch):
                pass
        return (process_time() - start) / rounds


def adding(add: Add, file: BinaryIO, work: Work, rounds: int) -> float:
    batch = IOBatch()
    parts, fd = filled(work), file.fileno()
    some = max(1, ENTRIES // (2 * len(parts)))
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


def measure(
    options: Options, place: Place, work: Work, owfat: Sender | None
) -> dict[str, list[float]]:
    """Return the parts' microseconds of each turn."""
    port, file = place
    rounds = options.rounds(int(TARGET / whole(port, file, work, options.rounds(200))))
    ways: dict[str, Callable[[], float]] = {
        "whole": partial(whole, port, file, work, rounds),
        "calls": partial(system_calls, port, file, work, rounds),
        "last": partial(last_send, rounds),
        "all": partial(adding, add_all, file, work, rounds),
        "buffers": partial(adding, add_buffers, file, work, rounds),
        "nothing": partial(adding, add_nothing, file, work, rounds),
    }
    if owfat is not None:
        ways["libowfat"] = lambda: owfat.send(port, work, rounds).cpu / 1e6
    return {
        name: [seconds * 1e6 for seconds in turns]
        for name, turns in in_turn(ways, options.turns).items()
    }


def less(these: Sequence[float], *others: Sequence[float]) -> list[float]:
    """Take the others away, turn by turn."""
    return [this - sum(rest) for this, *rest in zip(these, *others, strict=True)]


def column(work: Work, took: dict[str, list[float]]) -> dict[str, str]:
    """Say where the time of a work goes, and what is to be saved."""
    rest = less(took["whole"], took["calls"], took["all"], took["last"])
    cells = {
        "iobatch": took["whole"],
        "system calls": took["calls"],
        "addbuf": less(took["buffers"], took["nothing"]),
        "addfile": [0.0] if work.buffers else less(took["all"], took["buffers"]),
        "the loops": took["nothing"],
        "the last iob_send": took["last"],
        "the rest of iob_send": rest,
    }
    if "libowfat" in took and work.owfat is not None and work.aim is not None:
        cells["libowfat"] = took["libowfat"]
        for name, most in (("goal", work.owfat), ("aim", work.aim)):
            allowed = [most * theirs for theirs in took["libowfat"]]
            cells[f"the {name}: at most"] = allowed
            cells[f"the {name}: to be saved"] = less(took["whole"], allowed)
    return {name: spread(values) for name, values in cells.items()}


def lines(options: Options, place: Place, work: Work, cpu: float) -> None:
    """Print on which lines the time of a work goes."""
    port, file = place
    found: Counter[tuple[str, int]] = Counter()

    def look(_signum: int, frame: FrameType | None) -> None:
        if frame is not None:
            code = frame.f_code
            # None: on no line of its own.
            found[code.co_filename, frame.f_lineno or code.co_firstlineno] += 1

    rounds = options.rounds(int(SECONDS * 1e6 / cpu))
    with connected(socket.socket(), port, work) as sock:
        job = Job(sock, file, work.nodelay, rounds, filled(work))
        before = signal.signal(signal.SIGALRM, look)
        signal.setitimer(signal.ITIMER_REAL, INTERVAL, INTERVAL)
        iobatch(job)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    rows = []
    for (path, number), count in found.most_common(LINES):
        share = count / found.total()
        code = getline(path, number).strip().replace("|", "\\|")
        rows.append(
            [f"{share * cpu:.2f}", f"{share:.0%}", f"{Path(path).name}:{number}", f"`{code}`"]
        )
    table(
        f"send: the lines that take most, {work.name}, {found.total()} samples",
        ["CPU, us", "of all", "line", ""],
        rows,
    )


def show(
    options: Options,
    place: Place,
    works: Sequence[Work],
    by_line: Sequence[Work],
    owfat: Sender | None,
) -> None:
    """Print the tables."""
    took = {work.name: measure(options, place, work, owfat) for work in works}
    columns = {work.name: column(work, took[work.name]) for work in works}
    first, *_ = columns.values()
    table(
        "send: where the time of iobatch goes, CPU, us",
        ["", *columns],
        ([name, *(each[name] for each in columns.values())] for name in first),
    )
    for work in by_line:
        lines(options, place, work, median(took[work.name]["whole"]))
