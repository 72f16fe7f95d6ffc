"""Whether other system calls would serve iob_send better than those that it makes.

What is sent is 200 bytes and a file that is in the page cache, over TCP on loopback, without
Nagle's delay. iob_send reads a file of up to COPY_LIMIT and sends it in one call with the header;
a longer one goes by sendfile, behind a header sent with MSG_MORE. The first table holds other ways
against just these calls. All are written by hand, so that the kernel's part is compared, and not
the Python around it (that is what the row "iob_send" shows). A way "helps" at a size where it took
less in every turn, and less than 0.9 in the middle: a delay between two sends alone can save a few
hundredths, since the reader then holds the connection less often at the same moment.

MSG_ZEROCOPY: the file is read into memory, which the kernel pins instead of copying it. The error
queue is read too, since its messages say which memory can be let go. Loopback copies the bytes all
the same, as every path to a receiver on the same machine does, so all that can be seen here is what
pinning and messages cost. A network card would save the copy.

fadvise is a system call more where a file is cached. What it does where it is not is the second
table: the file is dropped from the cache before each time, and the time until the last byte was
taken is measured by the clock, since waiting is no CPU time.

The third table finds COPY_LIMIT: iob_send with all files read against iob_send with all files sent
by sendfile. Where the lines cross depends on the reader and on how the kernel sends, so there are
several columns:

- "drops": the reader has the other processor, never sleeps and copies nothing (see reader.py).
- "copies": it sleeps when there is nothing, and copies what comes, as a program on this machine.
- "same": it has the sender's processor.
- "loaded": it shares the other processor with a program that computes.
- "eight": as "drops", but eight times 200 bytes and the file are sent in one batch.
- "bbr": as "drops", but with BBR as congestion control, where the machine has it.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
import sys
import tempfile
from collections import deque
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from random import Random
from statistics import median
from time import perf_counter, process_time, sleep
from typing import TYPE_CHECKING
from unittest.mock import patch

from iobatch import COPY_LIMIT, IOBatch, iob_send
from tests.bench.reader import READER, SENDER, beside, dropped, pin
from tests.bench.report import in_turn, ratios, spread, table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from tests.bench.report import Options

    Way = Callable[[socket.socket, int, int, int], None]

HEADER = b"h" * 200
KIB = 1024
MIB = 1024 * KIB
SIZES = [size * KIB for size in (1, 4, 16, 32, 48, 64, 128, 256, 1024)]
COLD = [16 * KIB, 64 * KIB, MIB, 16 * MIB]
CROSSING = [size * KIB for size in (1, 4, 8, 12, 16, 24, 32, 48, 64, 128, 256, 1024)]
CONGESTION = Path("/proc/sys/net/ipv4/tcp_available_congestion_control")
JOIN_LIMIT = 16 * KIB  # as in iob_send
STAGE_LIMIT = 128 * KIB  # as in iob_send
# linux/socket.h, asm-generic/socket.h, linux/errqueue.h: Python has no names for them.
MSG_ZEROCOPY = 0x4000000
SO_ZEROCOPY = 60
EXTENDED_ERROR = struct.Struct("IBBBBII")
MESSAGES = 64  # so many may wait; net.core.optmem_max bounds what they take
MSG_MORE = int(socket.MSG_MORE)  # an IntFlag takes its time


def need(nbytes: int, least: int) -> None:
    """Make sure that a system call has sent what it was to send."""
    if nbytes < least:
        raise RuntimeError(f"{nbytes} bytes instead of {least}")


def by_iob_send(sock: socket.socket, fd: int, size: int, rounds: int, count: int = 1) -> None:
    batch = IOBatch()
    for _ in range(rounds):
        for _ in range(count):
            batch.addbuf(HEADER)
            batch.addfile(fd, 0, size)
        while iob_send(sock, batch) > 0:
            pass


def by_hand(
    sock: socket.socket, fd: int, size: int, rounds: int, advice: int | None = None
) -> None:
    """Make the system calls that iob_send makes, and maybe give an advice first."""
    for _ in range(rounds):
        if advice is not None:
            os.posix_fadvise(fd, 0, size, advice)
        if size > COPY_LIMIT:
            sock.send(HEADER, MSG_MORE)
            need(os.sendfile(sock.fileno(), fd, 0, size), size)
        elif size + len(HEADER) > JOIN_LIMIT:
            need(sock.sendmsg([HEADER, os.pread(fd, size, 0)]), size)
        else:
            need(sock.send(b"".join([HEADER, os.pread(fd, size, 0)])), size)


def by_preadv(sock: socket.socket, fd: int, size: int, rounds: int) -> None:
    """Read into a buffer that is used again."""
    buffer = memoryview(bytearray(min(size, STAGE_LIMIT)))
    for _ in range(rounds):
        head = [HEADER]
        for offset in range(0, size, len(buffer)):
            os.preadv(fd, [buffer], offset)
            more = MSG_MORE if offset + len(buffer) < size else 0
            need(sock.sendmsg([*head, buffer], (), more), len(buffer))
            head = []


def by_readinto(sock: socket.socket, fd: int, size: int, rounds: int) -> None:
    """Do the same by readinto, which needs a seek; Python 3.14 has it as os.readinto."""
    buffer = memoryview(bytearray(min(size, STAGE_LIMIT)))
    with open(fd, "rb", buffering=0, closefd=False) as file:
        for _ in range(rounds):
            head = [HEADER]
            for offset in range(0, size, len(buffer)):
                file.seek(offset)
                file.readinto(buffer)
                more = MSG_MORE if offset + len(buffer) < size else 0
                need(sock.sendmsg([*head, buffer], (), more), len(buffer))
                head = []


def by_splice(sock: socket.socket, fd: int, size: int, rounds: int) -> None:
    """Move the file's pages to a pipe, and from there to the socket."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, MIB)
    for _ in range(rounds):
        sock.send(HEADER, MSG_MORE)
        offset = 0
        while offset < size:
            moved = os.splice(fd, writing, size - offset, offset_src=offset)
            offset += moved
            while moved:
                moved -= os.splice(reading, sock.fileno(), moved)
    os.close(reading)
    os.close(writing)


def by_zerocopy(sock: socket.socket, fd: int, size: int, rounds: int) -> None:
    """Let the kernel use our memory, and keep it until a message tells that it has."""
    sock.setsockopt(socket.SOL_SOCKET, SO_ZEROCOPY, 1)
    poller = select.poll()
    poller.register(sock, 0)  # messages come as POLLERR, which needs no asking
    held: deque[bytes] = deque()
    for _ in range(rounds):
        held.append(os.pread(fd, size, 0))
        need(sock.sendmsg([HEADER, held[-1]], (), MSG_ZEROCOPY), size)
        if len(held) >= MESSAGES:
            poller.poll()
            let_go(sock, held)
    while held:
        poller.poll()
        let_go(sock, held)


def let_go(sock: socket.socket, held: deque[bytes]) -> None:
    """Read the messages that are there."""
    with suppress(BlockingIOError):
        while held:
            ancdata = sock.recvmsg(0, 64, socket.MSG_ERRQUEUE)[1]
            *_, first, last = EXTENDED_ERROR.unpack_from(ancdata[0][2])
            for _ in range(first, last + 1):
                held.popleft()


# The first one is what the others are held against.
WAYS: dict[str, Way] = {
    "now, by hand": by_hand,
    "iob_send": by_iob_send,
    "preadv, buffer used again": by_preadv,
    "readinto, buffer used again": by_readinto,
    "splice through a pipe": by_splice,
    "MSG_ZEROCOPY": by_zerocopy,
    "fadvise WILLNEED": partial(by_hand, advice=os.POSIX_FADV_WILLNEED),
    "fadvise SEQUENTIAL": partial(by_hand, advice=os.POSIX_FADV_SEQUENTIAL),
}
COLD_WAYS = ["now, by hand", "fadvise WILLNEED", "fadvise SEQUENTIAL"]


def warm(way: Way, sock: socket.socket, path: Path, size: int, rounds: int) -> float:
    """Return the CPU seconds that one time takes."""
    with path.open("rb", 0) as file:
        start = process_time()
        way(sock, file.fileno(), size, rounds)
        return (process_time() - start) / rounds


def cold(way: Way, sock: socket.socket, path: Path, size: int, rounds: int) -> float:
    """Return the seconds that one time takes."""
    rounds = min(rounds, 100)
    seconds = 0.0
    with path.open("rb", 0) as file:
        for _ in range(rounds):
            # Pages that a connection still holds stay in the cache. Those that the reader has
            # dropped are let go with the next segment, on this processor.
            sleep(0.002)
            sock.send(HEADER)
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            start = perf_counter()
            way(sock, file.fileno(), size, 1)
            seconds += perf_counter() - start
    return seconds / rounds


def is_dropped(path: Path) -> bool:
    """Tell whether the file system drops what it is told to."""
    with path.open("rb", 0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        with suppress(BlockingIOError):
            os.preadv(file.fileno(), [bytearray(1)], 0, os.RWF_NOWAIT)
            return False
    return True


@contextmanager
def body(size: int) -> Iterator[Path]:
    """Give the path of a file."""
    with tempfile.NamedTemporaryFile(buffering=0) as file:
        file.write(Random(size).randbytes(size))
        os.fsync(file.fileno())
        yield Path(file.name)


def against(
    title: str,
    measure: Callable[[Way, socket.socket, Path, int, int], float],
    sizes: Sequence[int],
    ways: Mapping[str, Way],
    options: Options,
) -> None:
    """Print a table of the ways, each against the first one."""
    results: dict[int, dict[str, list[float]]] = {}
    with dropped() as sock:
        for size in sizes:
            with body(size) as path:
                turns = {
                    name: partial(measure, way, sock, path, size, rounds(size, options))
                    for name, way in ways.items()
                }
                results[size] = in_turn(turns, options.turns)
    now, *others = ways
    rows = [[f"{now}, us", *(f"{median(results[size][now]) * 1e6:.1f}" for size in sizes), ""]]
    for name in others:
        costs = {size: ratios(results[size][name], results[size][now]) for size in sizes}
        helps = [size for size in sizes if max(costs[size]) < 1 and median(costs[size]) < 0.9]
        rows.append(
            [
                name,
                *(f"{median(costs[size]):.2f}" for size in sizes),
                ", ".join(map(amount, helps)) or "no",
            ]
        )
    table(title, ["way / now", *map(amount, sizes), "helps?"], rows)


def rounds(size: int, options: Options) -> int:
    """Return how often to send a file in a turn."""
    return options.rounds(min(128 * MIB // size, 5000))


def amount(nbytes: int) -> str:
    return f"{nbytes // KIB} KiB" if nbytes < MIB else f"{nbytes // MIB} MiB"


# The third table


def copy_all(sock: socket.socket) -> None:
    """Be a reader that sleeps and copies."""
    buffer = bytearray(MIB)
    while sock.recv_into(buffer):
        pass


def compute() -> None:
    pin(READER)
    while True:
        pass


@contextmanager
def loaded() -> Iterator[socket.socket]:
    """Give the reader's processor more to do."""
    with beside(compute), dropped() as sock:
        yield sock


# For each column the connection, and how many responses are in a batch.
COLUMNS: dict[str, tuple[Callable[[], AbstractContextManager[socket.socket]], int]] = {
    "drops": (dropped, 1),
    "copies": (partial(dropped, read=copy_all), 1),
    "same": (partial(dropped, SENDER), 1),
    "loaded": (loaded, 1),
    "eight": (dropped, 8),
    "bbr": (partial(dropped, congestion=b"bbr"), 1),
}


def limited(limit: int, measure: Callable[[], float]) -> float:
    """Measure with another COPY_LIMIT."""
    with patch("iobatch._send.COPY_LIMIT", limit):
        return measure()


def crossover(options: Options) -> None:
    """Print by which way iob_send takes less."""
    columns = dict(COLUMNS)
    if "bbr" not in CONGESTION.read_text().split():
        print("kernel: BBR is missing", file=sys.stderr)
        del columns["bbr"]
    cells: dict[int, list[str]] = {size: [] for size in CROSSING}
    for connect, count in columns.values():
        way = partial(by_iob_send, count=count)
        with connect() as sock:
            for size in CROSSING:
                times = rounds(size * count, options)
                with body(size) as path:
                    measure = partial(warm, way, sock, path, size, times)
                    turns = {
                        "read": partial(limited, size, measure),
                        "sent": partial(limited, 0, measure),
                    }
                    read, sent = in_turn(turns, options.turns).values()
                cells[size].append(spread(ratios(read, sent)))
    table(
        "kernel: iob_send, file read / file sent by sendfile, CPU",
        ["200 B + file", *columns],
        ([amount(size), *row] for size, row in cells.items()),
    )


def run(options: Options) -> None:
    """Print the tables."""
    pin(SENDER)
    against("kernel: file in the page cache, CPU", warm, SIZES, WAYS, options)
    with body(1) as path:
        dropping = is_dropped(path)
    if dropping:
        ways = {name: WAYS[name] for name in COLD_WAYS}
        against("kernel: file not in the page cache, clock", cold, COLD, ways, options)
    else:
        print(f"kernel: no cold files where {path.parent} is", file=sys.stderr)
    crossover(options)
