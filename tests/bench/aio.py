"""Measure BatchWriter and send_to_stream against what asyncio and uvloop have to send a file.

A response is 200 bytes and a file (random bytes, in the page cache), over TCP on loopback, one
behind the other on one connection: a way goes on as soon as its loop says that it may. CPU is
process_time(), user and system, of this process; the receiver is another one, see reader.py. Loops
and connections are made before the clock is started.

What is not alike:

- BatchWriter has the socket for itself; a stream is shared with a transport, which may hold 64 KiB
  back. So BatchWriter has to know that all is sent, and the others are done a little before it is.
- writelines() needs the file in memory. It is read with pread in the loop's own thread, as most
  programs do it for small files; careful ones pay for a thread.
- BatchWriter and send_to_stream look whether a file is in the cache before they send it, and that
  is in their figures. The others don't: the last table says what comes of it.
- uvloop has no sendfile.

The last table is about files that are not in the cache. While they are sent another task has a turn
of the loop after each other's, and the longest time between two of its turns is what everybody else
has to wait: for the disk, mostly, so it says as much of the disk as of the programs.
"""

from __future__ import annotations

import asyncio
import os
import random
import tempfile
from contextlib import ExitStack
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from statistics import median
from time import perf_counter, process_time
from typing import TYPE_CHECKING, Any, BinaryIO

from iobatch import IOB_ERROR, IOBatch, iob_send
from iobatch.aio import BatchWriter, send_to_stream
from tests.bench.reader import SENDER, dropped, pin
from tests.bench.report import describe, in_turn, leave_out, ratios, spread, table

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence

    from tests.bench.report import Options

    # Sends so many bytes of each file, and returns the CPU seconds.
    Way = Callable[[socket.socket, Sequence[BinaryIO], int], Coroutine[Any, Any, float]]

HEADER = b"h" * 200
KIB = 1024
MIB = 1024 * KIB
# How long a file is, and how often it is sent in a turn.
WORK = {KIB: 20_000, 16 * KIB: 5_000, 128 * KIB: 1_500, MIB: 400}
# How long a file is that is not in the cache, and how many of them are sent in a turn.
COLD = {KIB: 50, 64 * KIB: 50, MIB: 20, 64 * MIB: 1}


async def write(sock: socket.socket, files: Sequence[BinaryIO], size: int) -> float:
    """Post batches."""
    batch = IOBatch()
    async with BatchWriter(sock) as writer:
        start = process_time()
        for file in files:
            batch.addbuf(HEADER)
            batch.addfile(file.fileno(), 0, size)
            await writer.write(batch)
        return process_time() - start


async def stream(sock: socket.socket, files: Sequence[BinaryIO], size: int) -> float:
    """Send batches over a stream."""
    batch = IOBatch()
    _, writer = await asyncio.open_connection(sock=sock)
    start = process_time()
    for file in files:
        batch.addbuf(HEADER)
        batch.addfile(file.fileno(), 0, size)
        await send_to_stream(writer, batch)
    return await closed(writer, start)


async def writelines(sock: socket.socket, files: Sequence[BinaryIO], size: int) -> float:
    """Read files, and write them behind their headers."""
    _, writer = await asyncio.open_connection(sock=sock)
    start = process_time()
    for file in files:
        writer.writelines([HEADER, os.pread(file.fileno(), size, 0)])
        await writer.drain()
    return await closed(writer, start)


async def sendfile(sock: socket.socket, files: Sequence[BinaryIO], size: int) -> float:
    """Write headers, and let the loop send the files."""
    loop = asyncio.get_running_loop()
    _, writer = await asyncio.open_connection(sock=sock)
    start = process_time()
    for file in files:
        writer.write(HEADER)
        await loop.sendfile(writer.transport, file, 0, size)
    return await closed(writer, start)


async def bare(sock: socket.socket, files: Sequence[BinaryIO], size: int) -> float:
    """Call iob_send from the loop, which looks for nothing before it reads."""
    loop = asyncio.get_running_loop()
    batch = IOBatch()
    start = process_time()
    for file in files:
        batch.addbuf(HEADER)
        batch.addfile(file.fileno(), 0, size)
        while code := iob_send(sock, batch):
            if code == IOB_ERROR:
                raise batch.error or OSError
            if code < 0:
                writable = loop.create_future()
                loop.add_writer(sock, writable.set_result, None)
                await writable
                loop.remove_writer(sock)
    return process_time() - start


async def closed(writer: asyncio.StreamWriter, start: float) -> float:
    """Return the CPU seconds, and close a stream."""
    seconds = process_time() - start
    writer.close()
    await writer.wait_closed()
    return seconds


WAYS: dict[str, tuple[str, Way]] = {
    "BatchWriter.write": ("asyncio", write),
    "send_to_stream": ("asyncio", stream),
    "writelines, drain": ("asyncio", writelines),
    "loop.sendfile": ("asyncio", sendfile),
    "BatchWriter.write, uvloop": ("uvloop", write),
    "writelines, drain, uvloop": ("uvloop", writelines),
}
# The size, the way, what it is compared with (the best of them), and how much it may take of that.
GOALS = [
    (KIB, "BatchWriter.write", ["writelines, drain"], 0.8),
    (KIB, "BatchWriter.write", ["loop.sendfile"], 0.15),
    (MIB, "BatchWriter.write", ["writelines, drain", "loop.sendfile"], 1.0),
]
STALLING: dict[str, Way] = {
    "BatchWriter.write": write,
    "iob_send, add_writer": bare,
    "writelines, drain": writelines,
    "loop.sendfile": sendfile,
}


def run(options: Options) -> None:
    """Print the tables."""
    pin(SENDER)
    ways = dict(WAYS)
    if find_spec("uvloop") is None:
        leave_out(options, "uvloop", "pip install uvloop")
        ways = {name: way for name, way in WAYS.items() if way[0] != "uvloop"}
    describe(["attrs", "uvloop"])
    results: dict[int, dict[str, list[float]]] = {}

    def rows() -> Iterator[list[str]]:
        for size, rounds in WORK.items():
            count = options.rounds(rounds)
            with tempfile.TemporaryFile(buffering=0) as file:
                fill(file, size)
                each = {
                    name: partial(once, loop, way, [file] * count, size)
                    for name, (loop, way) in ways.items()
                }
                results[size] = in_turn(each, options.turns)
            yield [named(size), *(spread(results[size][name], 1) for name in ways)]

    table("A header and a file: CPU per response, microseconds", ["file", *ways], rows())
    table("Goals", ["file", "way", "against", "ratio", "goal", "met"], goals(results))
    stalls(options)


def once(loop: str, way: Way, files: Sequence[BinaryIO], size: int) -> float:
    """Return the CPU microseconds for a response."""
    factory = import_module(loop).new_event_loop
    with dropped() as sock, asyncio.Runner(loop_factory=factory) as runner:
        sock.setblocking(False)
        return runner.run(way(sock, files, size)) / len(files) * 1e6


def goals(results: Mapping[int, Mapping[str, Sequence[float]]]) -> Iterator[list[str]]:
    """Give the rows of what was to be reached."""
    for size, ours, peers, most in GOALS:
        peer = min(peers, key=lambda name: median(results[size][name]))
        found = ratios(results[size][ours], results[size][peer])
        met = "yes" if median(found) <= most else "no"
        yield [named(size), ours, peer, spread(found), f"{most}", met]


def stalls(options: Options) -> None:
    """Print how long a loop is kept from others while it sends files that are not in the cache."""

    def rows() -> Iterator[list[str]]:
        for size, rounds in COLD.items():
            count = options.rounds(rounds)
            with ExitStack() as stack:
                files = [
                    stack.enter_context(tempfile.TemporaryFile(buffering=0)) for _ in range(count)
                ]
                for file in files:
                    fill(file, size)
                each = {name: partial(stall, way, files, size) for name, way in STALLING.items()}
                found = in_turn(each, options.turns)
            cells = [
                f"{spread([longest for longest, _ in found[name]])} of "
                f"{median(whole for _, whole in found[name]):.0f}"
                for name in STALLING
            ]
            yield [f"{count} x {named(size)}", *cells]

    title = "Files that are not in the cache: the longest stall of the loop, of the whole time, ms"
    table(title, ["files", *STALLING], rows())


def stall(way: Way, files: Sequence[BinaryIO], size: int) -> tuple[float, float]:
    """Return for how many ms others had to wait, and how many all of it took."""
    for file in files:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    async def main() -> tuple[float, float]:
        longest = 0.0
        start = last = perf_counter()
        sending = asyncio.ensure_future(way(sock, files, size))
        while not sending.done():
            await asyncio.sleep(0)
            now = perf_counter()
            longest = max(longest, now - last)
            last = now
        await sending
        return longest * 1000, (last - start) * 1000

    with dropped() as sock:
        sock.setblocking(False)
        return asyncio.run(main())


def fill(file: BinaryIO, size: int) -> None:
    """Write random bytes, and have them on the disk, so that the cache can let them go."""
    file.write(random.Random(size).randbytes(size))
    os.fsync(file.fileno())


def named(size: int) -> str:
    return f"{size // MIB} MiB" if size >= MIB else f"{size // KIB} KiB"
