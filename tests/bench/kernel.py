"""Measure iob_send's system calls against other system calls for the same responses.

A response is a 200-byte header and a file, over TCP on loopback with TCP_NODELAY. iob_send reads a
file of up to COPY_LIMIT bytes and sends it in one call with the header; it sends a longer file by
sendfile, after a header sent with MSG_MORE. The first table, with the file in the page cache,
compares other methods with exactly these calls. All methods are written by hand, so that the table
compares the kernel's work and not the Python code around it; the row "iob_send" shows the cost of
that code. A method "helps" at a size if its ratio is below 1 in every turn and its median ratio is
below 0.9: any delay between two sends can save a few hundredths, because the reader and the sender
then use the connection less often at the same moment.

MSG_ZEROCOPY: the file is read into memory, which the kernel pins instead of copying it. The error
queue is read too, because its messages report which memory can be released. The kernel still copies
the bytes on every path to a receiver on the same machine, loopback included, so the table shows
only the cost of pinning and of the messages. A network card would save the copy.

fadvise costs one more system call where a file is in the page cache. The second table shows its
effect where the file is not: the file is dropped from the page cache before each response, and the
time until the kernel has accepted the last byte is measured by the clock, because waiting for the
disk takes no CPU time.

The third table is the measurement for COPY_LIMIT: iob_send with every file read against iob_send
with every file sent by sendfile. The size at which the ratio crosses 1 depends on the reader and on
how the kernel sends, so there are several columns:

- "drops": the reader has the other processor, never sleeps and copies nothing (see reader.py).
- "copies": the reader sleeps when no bytes are there, and copies them, as a local program does.
- "same": the reader runs on the sender's processor.
- "loaded": the reader shares the other processor with a busy loop.
- "eight": as "drops", but a batch holds eight responses.
- "bbr": as "drops", but with BBR as the congestion control, if the kernel has it.
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
from tests.bench.reader import READER, SENDER, child_process, pin_to_processor, reader_connection
from tests.bench.report import format_size, format_spread, print_table, ratios, run_in_turn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from tests.bench.report import Options

    Method = Callable[[socket.socket, int, int, int], None]

HEADER = b"h" * 200
KIB = 1024
MIB = 1024 * KIB
CACHED_SIZES = [size * KIB for size in (1, 4, 16, 32, 48, 64, 128, 256, 1024)]
NOT_CACHED_SIZES = [16 * KIB, 64 * KIB, MIB, 16 * MIB]
CROSSOVER_SIZES = [size * KIB for size in (1, 4, 8, 12, 16, 24, 32, 48, 64, 128, 256, 1024)]
CONGESTION = Path("/proc/sys/net/ipv4/tcp_available_congestion_control")
JOIN_LIMIT = 16 * KIB  # as in iob_send
STAGE_LIMIT = 128 * KIB  # as in iob_send
# From linux/socket.h, asm-generic/socket.h and linux/errqueue.h; Python has no names for them.
MSG_ZEROCOPY = 0x4000000
SO_ZEROCOPY = 60
EXTENDED_ERROR = struct.Struct("IBBBBII")
MAX_HELD = 64  # sends without a completion; net.core.optmem_max limits the memory for these
MSG_MORE = int(socket.MSG_MORE)  # operations on an IntFlag are slow


def check_sent(nbytes: int, least: int) -> None:
    """Raise an error if a system call sent fewer than `least` bytes."""
    if nbytes < least:
        raise RuntimeError(f"{nbytes} bytes were sent instead of {least}")


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
    """Make the system calls that iob_send makes, after a posix_fadvise() if advice is given."""
    for _ in range(rounds):
        if advice is not None:
            os.posix_fadvise(fd, 0, size, advice)
        if size > COPY_LIMIT:
            sock.send(HEADER, MSG_MORE)
            check_sent(os.sendfile(sock.fileno(), fd, 0, size), size)
        elif size + len(HEADER) > JOIN_LIMIT:
            check_sent(sock.sendmsg([HEADER, os.pread(fd, size, 0)]), size)
        else:
            check_sent(sock.send(b"".join([HEADER, os.pread(fd, size, 0)])), size)


def by_preadv(sock: socket.socket, fd: int, size: int, rounds: int) -> None:
    """Read into one reused buffer."""
    buffer = memoryview(bytearray(min(size, STAGE_LIMIT)))
    for _ in range(rounds):
        head = [HEADER]
        for offset in range(0, size, len(buffer)):
            os.preadv(fd, [buffer], offset)
            more = MSG_MORE if offset + len(buffer) < size else 0
            check_sent(sock.sendmsg([*head, buffer], (), more), len(buffer))
            head = []


def by_readinto(sock: socket.socket, fd: int, size: int, rounds: int) -> None:
    """Read into one reused buffer by readinto, which needs a seek; Python 3.14 has os.readinto."""
    buffer = memoryview(bytearray(min(size, STAGE_LIMIT)))
    with open(fd, "rb", buffering=0, closefd=False) as file:
        for _ in range(rounds):
            head = [HEADER]
            for offset in range(0, size, len(buffer)):
                file.seek(offset)
                file.readinto(buffer)
                more = MSG_MORE if offset + len(buffer) < size else 0
                check_sent(sock.sendmsg([*head, buffer], (), more), len(buffer))
                head = []


def by_splice(sock: socket.socket, fd: int, size: int, rounds: int) -> None:
    """Splice the file's pages into a pipe, and from the pipe into the socket."""
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
    """Send from pinned memory, and keep each buffer until its completion message arrives."""
    sock.setsockopt(socket.SOL_SOCKET, SO_ZEROCOPY, 1)
    poller = select.poll()
    poller.register(sock, 0)  # a message raises POLLERR, which poll always reports
    held: deque[bytes] = deque()
    for _ in range(rounds):
        held.append(os.pread(fd, size, 0))
        check_sent(sock.sendmsg([HEADER, held[-1]], (), MSG_ZEROCOPY), size)
        if len(held) >= MAX_HELD:
            poller.poll()
            read_completions(sock, held)
    while held:
        poller.poll()
        read_completions(sock, held)


def read_completions(sock: socket.socket, held: deque[bytes]) -> None:
    """Read the available completion messages, and release the buffers that they name."""
    with suppress(BlockingIOError):
        while held:
            ancdata = sock.recvmsg(0, 64, socket.MSG_ERRQUEUE)[1]
            *_, first, last = EXTENDED_ERROR.unpack_from(ancdata[0][2])
            for _ in range(first, last + 1):
                held.popleft()


# The first method is the baseline of the ratios.
METHODS: dict[str, Method] = {
    "calls of iob_send": by_hand,
    "iob_send": by_iob_send,
    "preadv, reused buffer": by_preadv,
    "readinto, reused buffer": by_readinto,
    "splice through a pipe": by_splice,
    "MSG_ZEROCOPY": by_zerocopy,
    "fadvise WILLNEED": partial(by_hand, advice=os.POSIX_FADV_WILLNEED),
    "fadvise SEQUENTIAL": partial(by_hand, advice=os.POSIX_FADV_SEQUENTIAL),
}
NOT_CACHED_METHODS = ["calls of iob_send", "fadvise WILLNEED", "fadvise SEQUENTIAL"]


def cpu_when_cached(
    method: Method, sock: socket.socket, path: Path, size: int, rounds: int
) -> float:
    """Return the CPU seconds per response."""
    with path.open("rb", 0) as file:
        start = process_time()
        method(sock, file.fileno(), size, rounds)
        return (process_time() - start) / rounds


def time_when_not_cached(
    method: Method, sock: socket.socket, path: Path, size: int, rounds: int
) -> float:
    """Return the seconds per response, the file dropped from the page cache before each."""
    rounds = min(rounds, 100)
    seconds = 0.0
    with path.open("rb", 0) as file:
        for _ in range(rounds):
            # The page cache keeps pages that a connection still holds. The connection releases
            # pages that the reader has discarded when it sends the next segment, on this
            # processor: so wait for the reader, and send a segment.
            sleep(0.002)
            sock.send(HEADER)
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            start = perf_counter()
            method(sock, file.fileno(), size, 1)
            seconds += perf_counter() - start
    return seconds / rounds


def can_evict(path: Path) -> bool:
    """Return whether POSIX_FADV_DONTNEED drops the pages of this file system's files."""
    with path.open("rb", 0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        with suppress(BlockingIOError):
            os.preadv(file.fileno(), [bytearray(1)], 0, os.RWF_NOWAIT)
            return False
    return True


@contextmanager
def temporary_file(size: int) -> Iterator[Path]:
    """Yield the path of a file of random bytes, synced to disk."""
    with tempfile.NamedTemporaryFile(buffering=0) as file:
        file.write(Random(size).randbytes(size))
        os.fsync(file.fileno())
        yield Path(file.name)


def compare(
    title: str,
    measure: Callable[[Method, socket.socket, Path, int, int], float],
    sizes: Sequence[int],
    methods: Mapping[str, Method],
    options: Options,
) -> None:
    """Print a table of the methods, each as a ratio to the first one."""
    results: dict[int, dict[str, list[float]]] = {}
    with reader_connection() as sock:
        for size in sizes:
            with temporary_file(size) as path:
                turns = {
                    name: partial(measure, method, sock, path, size, rounds_for(size, options))
                    for name, method in methods.items()
                }
                results[size] = run_in_turn(turns, options.turns)
    baseline, *others = methods
    rows = [
        [f"{baseline}, us", *(f"{median(results[size][baseline]) * 1e6:.1f}" for size in sizes), ""]
    ]
    for name in others:
        costs = {size: ratios(results[size][name], results[size][baseline]) for size in sizes}
        helps = [size for size in sizes if max(costs[size]) < 1 and median(costs[size]) < 0.9]
        rows.append(
            [
                name,
                *(f"{median(costs[size]):.2f}" for size in sizes),
                ", ".join(map(format_size, helps)) or "no",
            ]
        )
    print_table(title, ["method / calls of iob_send", *map(format_size, sizes), "helps?"], rows)


def rounds_for(size: int, options: Options) -> int:
    """Return the number of responses in a turn."""
    return options.rounds(min(128 * MIB // size, 5000))


# The third table: read or sendfile.


def receive_copying(sock: socket.socket) -> None:
    """Receive all bytes as a local program does: sleep until bytes arrive, and copy them."""
    buffer = bytearray(MIB)
    while sock.recv_into(buffer):
        pass


def spin() -> None:
    pin_to_processor(READER)
    while True:
        pass


@contextmanager
def loaded_connection() -> Iterator[socket.socket]:
    """Yield a connection whose reader shares its processor with a busy loop."""
    with child_process(spin), reader_connection() as sock:
        yield sock


# For each column the connection, and the number of responses in a batch.
COLUMNS: dict[str, tuple[Callable[[], AbstractContextManager[socket.socket]], int]] = {
    "drops": (reader_connection, 1),
    "copies": (partial(reader_connection, read=receive_copying), 1),
    "same": (partial(reader_connection, SENDER), 1),
    "loaded": (loaded_connection, 1),
    "eight": (reader_connection, 8),
    "bbr": (partial(reader_connection, congestion=b"bbr"), 1),
}


def with_copy_limit(limit: int, measure: Callable[[], float]) -> float:
    """Run a measurement with another COPY_LIMIT."""
    with patch("iobatch._send.COPY_LIMIT", limit):
        return measure()


def print_crossover(options: Options) -> None:
    """Print the ratio of reading a file to sendfile, by size, for each kind of connection."""
    columns = dict(COLUMNS)
    if "bbr" not in CONGESTION.read_text().split():
        print("kernel: BBR is missing: modprobe tcp_bbr", file=sys.stderr)
        del columns["bbr"]
    cells: dict[int, list[str]] = {size: [] for size in CROSSOVER_SIZES}
    for connect, count in columns.values():
        method = partial(by_iob_send, count=count)
        with connect() as sock:
            for size in CROSSOVER_SIZES:
                times = rounds_for(size * count, options)
                with temporary_file(size) as path:
                    measure = partial(cpu_when_cached, method, sock, path, size, times)
                    turns = {
                        "read": partial(with_copy_limit, size, measure),
                        "sent": partial(with_copy_limit, 0, measure),
                    }
                    read, sent = run_in_turn(turns, options.turns).values()
                cells[size].append(format_spread(ratios(read, sent)))
    print_table(
        "kernel: iob_send, file read / file sent by sendfile, CPU",
        ["200 B + file", *columns],
        ([format_size(size), *row] for size, row in cells.items()),
    )


def run(options: Options) -> None:
    """Print the tables."""
    pin_to_processor(SENDER)
    compare("kernel: file in the page cache, CPU", cpu_when_cached, CACHED_SIZES, METHODS, options)
    with temporary_file(1) as path:
        evictable = can_evict(path)
    if evictable:
        methods = {name: METHODS[name] for name in NOT_CACHED_METHODS}
        compare(
            "kernel: file not in the page cache, clock",
            time_when_not_cached,
            NOT_CACHED_SIZES,
            methods,
            options,
        )
    else:
        message = f"kernel: the file system of {path.parent} keeps files in the page cache"
        print(message, file=sys.stderr)
    print_crossover(options)
