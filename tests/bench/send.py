"""Measure iob_send against the ways of C and Python to send a response.

A response is made of 200-byte buffers and ranges of a file (random bytes, in the page cache), and
goes over TCP on loopback. Each way is a process of its own (senders.c, senders.py), so that none
has another's imports, heap or loop; it lives for the whole run and gets a new connection each turn.
Sockets are non-blocking and have TCP_NODELAY, as a server's have: each response leaves by itself.
Only the lone buffer is also sent without TCP_NODELAY.

CPU is process_time(), user and system, of as many responses as take about TARGET seconds. Imports,
connecting and the start of a loop are not counted. What loopback adds is meant to be as small as
can be, since a sender on a network doesn't pay for it: the receiver has another processor, spins
instead of sleeping, and lets the kernel drop the bytes. (One that sleeps is woken up by the sender,
and one that copies is slower than sendfile. Both cost the sender: 1 MiB four times as much as here,
and with a spread that hides what differs.) Nor is any sender paced: the congestion control is Reno,
whatever the system's is, for BBR's timers would take more than all else. The kernel's receiving
side is still in all figures.

System calls are those of a few responses under strace, which slows the sender down so much that
there is always room: waiting for it is not among them. Data segments are those of one response
alone on a connection with a network's MSS, 1460, as TCP_INFO has them after a shutdown; there all
bytes are compared. In each turn their number is. Up to 128 KiB there are never to be more than with
libowfat: that is judged by the most that each took in any try. Above, by the medians.

Beyond each goal is an aim. The last tables show what is in the way of both, see spent.py.

What is not alike:

- A library is given buffers and ranges, and chooses the system calls; what is by hand knows the
  work, and is the floor that a library adds to: in C, and in Python.
- libevent sends a file by sendfile, each range by a call of its own, or maps it. It is mapped once
  for all responses here, as by a server that keeps its files open; and then the program gets a
  SIGBUS if somebody cuts the file off while it is sent, where the others get an error.
- libowfat sends what has no file with MSG_MORE, to its end: it stays in the socket until more is
  sent behind it, 200 ms at most. The segments in the run show it. Its time is that of a
  copy into the socket; what iobatch can be compared with there is the loop by hand.
- Without TCP_NODELAY small responses are joined as long as the sender is faster than the ACKs, and
  a segment costs more than all else: who is a little slower than the edge sends, and pays for, one
  for each response. There too the segments in the run say what is compared.
- asyncio and uvloop have the smallest protocol possible, no streams. Files are read in the loop's
  own thread, though careful programs pay for a thread pool. What is sent in pieces is sent in
  pieces of the size that was found to be the best.
- trio's streams set TCP_NOTSENT_LOWAT to 16 KiB. The other options of sockets are alike.
- twisted sends in the next turn of its reactor, and each of trio's writes has a turn of its loop:
  that is how they work. The others send at once where there is room.
"""

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
from statistics import median
from typing import TYPE_CHECKING, Self

from attrs import define, field, frozen

from tests.bench import spent
from tests.bench.plot import bars
from tests.bench.reader import beside
from tests.bench.report import describe, in_turn, leave_out, ratios, spread, table
from tests.bench.senders import WAYS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tests.bench.report import Options

KIB = 1024
TARGET = 0.15  # seconds of CPU that a way gets in a turn
MOST = 200_000  # rounds in a turn
TRIES = 5  # connections whose segments are counted
MSS = 1460
C = {
    "C by hand": [],
    "libowfat": ["-DOWFAT", "-lowfat"],
    "libevent": ["-DLIBEVENT=0", "-levent_core"],
    "libevent, mmap": ["-DLIBEVENT=EVBUF_FS_DISABLE_SENDFILE", "-levent_core"],
}
PACKAGES = ["gevent", "tornado", "trio", "twisted", "uvloop"]
LIBRARIES = [name for name in WAYS if name not in {"iobatch", "Python by hand"}]


@frozen
class Work:
    """A response, and what is to be reached.

    Attributes:
        name: what the tables call it.
        parts: for each a buffer's length, and offset and length of the range of the file behind it.
        owfat: the CPU it may take, as a ratio to libowfat's; None: no goal.
        aim: what it should rather take of that.
        library: the same for the best library of Python.
        best: the library that is meant; None: whichever is the best.
        nodelay: TCP_NODELAY is set.

    """

    name: str
    parts: Sequence[tuple[int, int, int]]
    owfat: float | None = None
    aim: float | None = None
    library: float | None = None
    best: str | None = None
    nodelay: bool = True

    @property
    def size(self) -> int:
        return sum(head + count for head, _, count in self.parts)

    @property
    def buffers(self) -> bool:
        """There is no file."""
        return not any(count for _, _, count in self.parts)

    def digest(self, data: bytes) -> int:
        """Return what the receiver shall make of it."""
        crc = 0
        for head, offset, count in self.parts:
            crc = zlib.crc32(data[offset : offset + count], zlib.crc32(b"h" * head, crc))
        return crc


HEADER = 200
MULTIPART = [
    (HEADER, 0, 0),
    *((100, index * 1_000_003, 8 * KIB) for index in range(8)),
    (40, 0, 0),
]


def file(
    kib: int, owfat: float | None = None, aim: float | None = None, library: float | None = None
) -> Work:
    name = f"{kib} KiB" if kib < KIB else f"{kib // KIB} MiB"
    return Work(f"200 B + {name}", [(HEADER, 0, kib * KIB)], owfat, aim, library)


LONE = Work("lone 200 B", [(HEADER, 0, 0)], 2.5, 2.0, 1.0, "asyncio")
MANY = Work("64 buffers of 200 B", [(HEADER, 0, 0)] * 64, 1.0, 0.5, 0.9)
SMALL = file(1, 0.95, 0.8, 0.6)
MIDDLE = file(16, 0.85, 0.75, 0.6)
LARGE = file(64, 1.1, 1.0, 0.8)
PIPELINED = Work("100 pipelined (200 B + 1 KiB)", [(HEADER, 0, KIB)] * 100, 0.5, 0.3, 0.5)
WORK = [
    LONE,
    Work("lone 200 B, Nagle", LONE.parts, 2.5, 2.0, 1.0, "asyncio", nodelay=False),
    Work("8 buffers of 200 B", [(HEADER, 0, 0)] * 8),
    MANY,
    SMALL,
    file(4),
    MIDDLE,
    file(32),
    LARGE,
    file(128),
    file(256, 1.1, 1.0, 0.8),
    file(KIB, 1.05, 1.0, 1.0),
    file(16 * KIB, 1.05, 1.0, 1.0),
    Work("multipart, 8 ranges of 8 KiB", MULTIPART),
    PIPELINED,
]
EXPLAINED = [LONE, MANY, SMALL, MIDDLE, LARGE, PIPELINED]
# What the plot shows.
PLOTTED = [LONE, SMALL, MIDDLE, file(256), file(KIB), PIPELINED]
SHOWN = ["iobatch", "libowfat", "libevent", "libevent, mmap", "asyncio", "uvloop", "twisted"]


@frozen
class Turn:
    """What a turn gave.

    Attributes:
        cpu: microseconds for each response.
        segments: data segments for each response.

    """

    cpu: float
    segments: float


@define
class Sender:
    """A process that sends responses in one way."""

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
        self._process.communicate()  # the end of its input is its end

    def send(self, port: int, work: Work, rounds: int, *, check: bool = False) -> Turn:
        """Have a response sent so often."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        words = [
            port,
            int(work.nodelay),
            rounds,
            self.path,
            *(n for part in work.parts for n in part),
        ]
        print(*words, file=self._process.stdin, flush=True)
        cpu, segments, total, crc = self._process.stdout.readline().split() or [0, 0, 0, 0]
        wanted = rounds * work.size, work.digest(self.data) if check else 0
        if (int(total), int(crc)) != wanted:
            raise RuntimeError(f"{self.name} did not send what it was to send: {work.name}")
        return Turn(float(cpu), int(segments) / rounds)


def receive(listener: socket.socket, processors: Sequence[int], *, check: bool) -> None:
    """Take what comes, one connection after the other, and tell each how much it was."""
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
def receiver(processors: Sequence[int], *, check: bool = False) -> Iterator[int]:
    """Run a process that receives; give its port. To check is to compare and count segments."""
    with socket.socket() as listener:
        if check:
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, MSS)
            # With TCP_NODELAY Linux cuts a frame where the window ends: it shall not end.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        with beside(partial(receive, check=check), listener, processors):
            yield listener.getsockname()[1]


def commands(options: Options, folder: Path) -> dict[str, list[str | Path]]:
    """Return how to start each way there is, ours first."""
    result: dict[str, list[str | Path]] = {}
    for name in WAYS:
        if name in PACKAGES and find_spec(name) is None:
            leave_out(options, name, f"pip install {name}")
        else:
            result[name] = [sys.executable, "-m", "tests.bench.senders", name]
    if not shutil.which("cc"):
        leave_out(options, ", ".join(C), "there is no C compiler")
        return result
    source = Path(__file__).with_name("senders.c")
    for name, flags in C.items():
        program = folder / name
        made = subprocess.run(
            ["cc", "-O2", "-o", program, source, *flags],
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        if made.returncode:
            leave_out(options, name, made.stderr)
        else:
            result[name] = [program]
    return result


def count_calls(log: Path) -> list[int]:
    """Return the system calls between each two looks at the CPU clock, which is a call itself."""
    counts = []
    inside = False
    for line in log.read_text().splitlines():
        _, call = line.split(maxsplit=1)  # a thread's number, and what it called
        if call.startswith("clock_gettime(CLOCK_PROCESS_CPUTIME_ID"):
            inside = not inside
            if inside:
                counts.append(0)
        elif inside and not call.startswith(("<", "-", "+")):  # resumed; signals; exits
            counts[-1] += 1
    return counts


def applies(name: str, work: Work) -> bool:
    """Tell whether a way is one of its own for a work: buffers are neither mapped nor files."""
    return not work.buffers or not name.endswith(("sendfile", "mmap"))


def trace(options: Options, sender: Sender, port: int, folder: Path) -> dict[str, float]:
    """Count the system calls for each response."""
    rounds = options.rounds(10)
    log = folder / "strace"
    works = [work for work in WORK if applies(sender.name, work)]
    traced = ["strace", "-f", "-qq", "-o", log, *sender.command]
    with Sender(sender.name, traced, sender.path, sender.data) as slow:
        slow.send(port, works[-1], 1)  # what happens only once
        for work in works:
            slow.send(port, work, rounds)
    return {
        work.name: count / rounds for work, count in zip(works, count_calls(log)[1:], strict=True)
    }


def rounds_for(options: Options, sender: Sender, port: int, work: Work) -> int:
    """Warm a sender up, and find out how often it does a work in a turn."""
    some = options.rounds(max(1, min(1000, (8 << 20) // work.size)))
    cpu = sender.send(port, work, some).cpu
    return options.rounds(max(1, min(MOST, int(TARGET * 1e6 / cpu))))


@frozen
class Result:
    """What a way took for a work."""

    cpu: Sequence[float]
    in_run: Sequence[float]  # segments for each response in the turns that were timed
    segments: Sequence[float]  # of a response alone


def run(options: Options) -> None:
    """Print the tables."""
    processors = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, processors[:1])  # the senders inherit it
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        path = folder / "file"
        data = Random(0).randbytes(16 << 20)
        path.write_bytes(data)
        os.sync()  # or the kernel does it while it is sent
        drop = stack.enter_context(receiver(processors))
        check = stack.enter_context(receiver(processors, check=True))
        senders = {
            name: stack.enter_context(Sender(name, command, path, data))
            for name, command in commands(options, folder).items()
        }
        calls: dict[str, dict[str, float]] = {}
        if shutil.which("strace"):
            for name, sender in senders.items():
                calls[name] = trace(options, sender, drop, folder)
        else:
            leave_out(options, "strace", "apt-get install strace")
        describe(["attrs", *PACKAGES])
        results = {}
        for work in WORK:
            able = [sender for name, sender in senders.items() if applies(name, work)]
            results[work.name] = measure(options, work, able, (drop, check))
            show(work, results[work.name], calls)
        goals(results)
        plot(options, results)
        opened = stack.enter_context(path.open("rb", buffering=0))
        spent.show(options, (drop, opened), EXPLAINED, [SMALL, PIPELINED], senders.get("libowfat"))


def measure(
    options: Options, work: Work, senders: Sequence[Sender], ports: tuple[int, int]
) -> dict[str, Result]:
    """Let all do a work in turn."""
    drop, check = ports
    tries = options.rounds(TRIES)
    alone = {
        sender.name: [sender.send(check, work, 1, check=True).segments for _ in range(tries)]
        for sender in senders
    }
    rounds = {sender.name: rounds_for(options, sender, drop, work) for sender in senders}
    turns = in_turn(
        {sender.name: partial(sender.send, drop, work, rounds[sender.name]) for sender in senders},
        options.turns,
    )
    return {
        name: Result([turn.cpu for turn in mine], [turn.segments for turn in mine], alone[name])
        for name, mine in turns.items()
    }


def counted(values: Sequence[float]) -> str:
    """Say what was counted, and from where to where it goes if it is not always the same."""
    return spread(values, 0) if len(set(values)) > 1 else f"{values[0]:.0f}"


def show(
    work: Work, results: Mapping[str, Result], calls: Mapping[str, Mapping[str, float]]
) -> None:
    """Print the table of a work."""
    head = ["", "CPU, us", "iobatch / it", "system calls", "data segments"]
    ours = results["iobatch"]
    rows = []
    for name, result in results.items():
        row = [
            name,
            spread(result.cpu),
            "" if result is ours else spread(ratios(ours.cpu, result.cpu)),
            f"{round(calls[name][work.name], 1):g}" if calls else "?",
            counted(result.segments),
        ]
        if work.buffers:
            row.append(spread(result.in_run))
        rows.append(row)
    table(f"send: {work.name}", [*head, "segments in the run"] if work.buffers else head, rows)


def within(values: Sequence[float], most: float) -> str:
    return "yes" if median(values) <= most else "no"


def goals(results: Mapping[str, Mapping[str, Result]]) -> None:
    """Print what is to be reached, and what is."""
    rows = []
    segments = []
    for work in WORK:
        found = results[work.name]
        ours = found["iobatch"]
        if "libowfat" in found:
            segments.append([work.name, *fewer(work, ours.segments, found["libowfat"].segments)])
        if work.owfat is None or work.aim is None or work.library is None:
            continue
        row = [work.name]
        if "libowfat" in found:
            ratio = ratios(ours.cpu, found["libowfat"].cpu)
            row += [spread(ratio), f"{work.owfat:g}", within(ratio, work.owfat)]
            row += [f"{work.aim:g}", within(ratio, work.aim)]
        else:
            row += ["?"] * 5
        best = work.best or min(
            (name for name in LIBRARIES if name in found), key=lambda name: median(found[name].cpu)
        )
        ratio = ratios(ours.cpu, found[best].cpu)
        row += [best, spread(ratio), f"{work.library:g}", within(ratio, work.library)]
        row += [
            spread(ratios(ours.cpu, found[name].cpu)) if name in found else "?"
            for name in ("C by hand", "Python by hand")
        ]
        rows.append(row)
    goal = ["goal", "met"]
    head = ["", "iobatch / libowfat", *goal, "aim", "met", "best library", "iobatch / it", *goal]
    table("send: goals, CPU", [*head, "/ C by hand", "/ Python by hand"], rows)
    head = ["", "iobatch", "libowfat", "what is compared", "ratio", *goal]
    table("send: goals, data segments", head, segments)


def fewer(work: Work, ours: Sequence[float], theirs: Sequence[float]) -> list[str]:
    """Say whether we take as few segments as is to be reached."""
    if work.size < 128 * KIB:  # never more
        how, ratio, most = "the most", max(ours) / max(theirs), 1.0
    else:
        how, ratio, most = "medians", median(ours) / median(theirs), 1.1
    cells = [counted(ours), counted(theirs), how, f"{ratio:.3f}"]
    return [*cells, f"{most:g}", "yes" if ratio <= most else "no"]


def plot(options: Options, results: Mapping[str, Mapping[str, Result]]) -> None:
    """Draw some of it."""
    if options.plots is None:
        return
    groups = {
        work.name: {
            f"{name} (held back)" if work.buffers and name == "libowfat" else name: median(
                results[work.name][name].cpu
            )
            for name in SHOWN
            if name in results[work.name]
        }
        for work in PLOTTED
    }
    bars(options.plots / "send.svg", "CPU per response; shorter is better", "us", groups)
