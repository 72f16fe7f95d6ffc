"""Measure BatchWriter, send_to_stream and send_batch against the methods of the event loops.

A response is a 200-byte header and a file of random bytes in the page cache. Responses go over one
TCP connection on loopback; a method starts the next response as soon as its await returns. CPU is
process_time(), user and system, of this process; the receiver is another process, see reader.py.
Loops and connections are created before the clock starts.

Differences between the methods:

- BatchWriter owns the socket, and its write completes when the kernel has accepted all bytes. A
  transport may buffer up to 64 KiB, so the clock of the other methods stops a little before the
  last byte is sent.
- writelines() needs the file in memory. pread reads it in the loop's thread, as most programs do
  for small files; reading it in another thread, which never blocks the loop, would cost more.
- BatchWriter, send_to_stream and send_batch check whether a file is in the page cache before they
  send it, and their figures include this check. The other methods don't check: see the last table.
- send_batch and trio's send_all let other tasks run in each call, which BatchWriter does not if the
  socket takes everything.
- uvloop has no sendfile. aiofastnet gives asyncio's loop its own transports.

The last table sends files that are not in the page cache, while a second task takes every turn of
the loop. The longest time between two turns of that task is the stall: the time for which a loop
makes other connections wait. Most of it is time of the disk, so it depends on the disk as much as
on the method.
"""

from __future__ import annotations

import asyncio
import os
import random
import tempfile
from contextlib import ExitStack
from functools import partial
from importlib.util import find_spec
from statistics import median
from time import perf_counter, process_time
from typing import TYPE_CHECKING, Any, BinaryIO

import anyio
from anyio.lowlevel import checkpoint

from iobatch import IOB_ERROR, IOBatch, iob_send
from iobatch.aio import BatchWriter, send_to_stream
from iobatch.anyio import send_batch
from tests.bench.reader import SENDER, pin_to_processor, reader_connection
from tests.bench.report import (
    format_size,
    format_spread,
    print_environment,
    print_table,
    report_missing,
    run_in_turn,
)
from tests.bench.senders import loop_factory

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Coroutine, Iterator, Sequence

    from tests.bench.report import Options

    # Sends the given number of bytes of each file; returns the CPU seconds.
    Method = Callable[[socket.socket, Sequence[BinaryIO], int], Coroutine[Any, Any, float]]

HEADER = b"h" * 200
KIB = 1024
MIB = 1024 * KIB
# The number of responses in a turn, by the size of the file.
ROUNDS = {KIB: 20_000, 16 * KIB: 5_000, 128 * KIB: 1_500, MIB: 400}
# The number of files that are not in the page cache, by their size.
NOT_CACHED = {KIB: 50, 64 * KIB: 50, MIB: 20, 64 * MIB: 1}


async def by_batch_writer(sock: socket.socket, files: Sequence[BinaryIO], size: int) -> float:
    """Post batches to a BatchWriter."""
    batch = IOBatch()
    async with BatchWriter(sock) as writer:
        start = process_time()
        for file in files:
            batch.addbuf(HEADER)
            batch.addfile(file.fileno(), 0, size)
            await writer.write(batch)
        return process_time() - start


async def by_send_to_stream(sock: socket.socket, files: Sequence[BinaryIO], size: int) -> float:
    """Send batches by send_to_stream."""
    batch = IOBatch()
    _, writer = await asyncio.open_connection(sock=sock)
    start = process_time()
    for file in files:
        batch.addbuf(HEADER)
        batch.addfile(file.fileno(), 0, size)
        await send_to_stream(writer, batch)
    return await close_stream(writer, start)


async def by_writelines(sock: socket.socket, files: Sequence[BinaryIO], size: int) -> float:
    """Read files, and write each with its header by writelines."""
    _, writer = await asyncio.open_connection(sock=sock)
    start = process_time()
    for file in files:
        writer.writelines([HEADER, os.pread(file.fileno(), size, 0)])
        await writer.drain()
    return await close_stream(writer, start)


async def by_loop_sendfile(sock: socket.socket, files: Sequence[BinaryIO], size: int) -> float:
    """Write headers, and send files by loop.sendfile."""
    loop = asyncio.get_running_loop()
    _, writer = await asyncio.open_connection(sock=sock)
    start = process_time()
    for file in files:
        writer.write(HEADER)
        await loop.sendfile(writer.transport, file, 0, size)
    return await close_stream(writer, start)


async def by_send_batch(sock: socket.socket, files: Sequence[BinaryIO], size: int) -> float:
    """Send batches by send_batch."""
    batch = IOBatch()
    start = process_time()
    for file in files:
        batch.addbuf(HEADER)
        batch.addfile(file.fileno(), 0, size)
        await send_batch(sock, batch)
    return process_time() - start


async def by_send_all(sock: socket.socket, files: Sequence[BinaryIO], size: int) -> float:
    """Read files, and send each with its header by send_all of a stream of trio."""
    import trio  # noqa: PLC0415  # optional

    stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock.dup()))
    async with stream:
        start = process_time()
        for file in files:
            await stream.send_all(HEADER + os.pread(file.fileno(), size, 0))
        return process_time() - start


async def by_iob_send(sock: socket.socket, files: Sequence[BinaryIO], size: int) -> float:
    """Send batches by iob_send, which doesn't check the page cache before it reads a file."""
    batch = IOBatch()
    start = process_time()
    for file in files:
        batch.addbuf(HEADER)
        batch.addfile(file.fileno(), 0, size)
        while code := iob_send(sock, batch):
            if code == IOB_ERROR:
                raise batch.error or OSError
            await (checkpoint() if code > 0 else anyio.wait_writable(sock))
    return process_time() - start


async def close_stream(writer: asyncio.StreamWriter, start: float) -> float:
    """Close a stream; return the CPU seconds since start, without those of the closing."""
    seconds = process_time() - start
    writer.close()
    await writer.wait_closed()
    return seconds


METHODS: dict[str, tuple[str, Method]] = {
    "BatchWriter.write": ("asyncio", by_batch_writer),
    "send_to_stream": ("asyncio", by_send_to_stream),
    "writelines, drain": ("asyncio", by_writelines),
    "loop.sendfile": ("asyncio", by_loop_sendfile),
    "BatchWriter.write, uvloop": ("uvloop", by_batch_writer),
    "writelines, drain, uvloop": ("uvloop", by_writelines),
    "writelines, drain, aiofastnet": ("aiofastnet", by_writelines),
    "send_batch": ("asyncio", by_send_batch),
    "send_batch, trio": ("trio", by_send_batch),
    "send_all, trio": ("trio", by_send_all),
}
STALL_METHODS: dict[str, tuple[str, Method]] = {
    "BatchWriter.write": ("asyncio", by_batch_writer),
    "send_batch": ("asyncio", by_send_batch),
    "iob_send, wait_writable": ("asyncio", by_iob_send),
    "writelines, drain": ("asyncio", by_writelines),
    "loop.sendfile": ("asyncio", by_loop_sendfile),
    "send_batch, trio": ("trio", by_send_batch),
    "iob_send, wait_writable, trio": ("trio", by_iob_send),
}


def run(options: Options) -> None:
    """Print the tables."""
    pin_to_processor(SENDER)
    methods = dict(METHODS)
    for package in ("uvloop", "aiofastnet", "trio"):
        if find_spec(package) is None:
            report_missing(options, package, f"pip install {package}")
            methods = {name: each for name, each in methods.items() if each[0] != package}
    print_environment(["attrs", "anyio", "uvloop", "aiofastnet", "trio"])

    def rows() -> Iterator[list[str]]:
        for size, rounds in ROUNDS.items():
            count = options.rounds(rounds)
            with tempfile.TemporaryFile(buffering=0) as file:
                write_random(file, size)
                each = {
                    name: partial(cpu_per_response, loop, method, [file] * count, size)
                    for name, (loop, method) in methods.items()
                }
                results = run_in_turn(each, options.turns)
            yield [format_size(size), *(format_spread(results[name], 1) for name in methods)]

    print_table("A header and a file: CPU per response, microseconds", ["file", *methods], rows())
    print_stalls(options)


def cpu_per_response(loop: str, method: Method, files: Sequence[BinaryIO], size: int) -> float:
    """Return the CPU microseconds per response."""
    with reader_connection() as sock:
        sock.setblocking(False)
        if loop == "trio":
            seconds = anyio.run(method, sock, files, size, backend=loop)
        else:
            with asyncio.Runner(loop_factory=loop_factory(loop)) as runner:
                seconds = runner.run(method(sock, files, size))
        return seconds / len(files) * 1e6


def print_stalls(options: Options) -> None:
    """Print the longest stall of the loop while files that are not in the page cache are sent."""
    has_trio = find_spec("trio") is not None
    methods = {name: each for name, each in STALL_METHODS.items() if has_trio or each[0] != "trio"}

    def rows() -> Iterator[list[str]]:
        for size, rounds in NOT_CACHED.items():
            count = options.rounds(rounds)
            with ExitStack() as stack:
                files = [
                    stack.enter_context(tempfile.TemporaryFile(buffering=0)) for _ in range(count)
                ]
                for file in files:
                    write_random(file, size)
                each = {
                    name: partial(measure_stall, loop, method, files, size)
                    for name, (loop, method) in methods.items()
                }
                found = run_in_turn(each, options.turns)
            cells = [
                f"{format_spread([longest for longest, _ in found[name]])} of "
                f"{median(whole for _, whole in found[name]):.0f}"
                for name in methods
            ]
            yield [f"{count} x {format_size(size)}", *cells]

    title = "Files not in the page cache: longest stall of the loop, and total time, ms"
    print_table(title, ["files", *methods], rows())


def measure_stall(
    loop: str, method: Method, files: Sequence[BinaryIO], size: int
) -> tuple[float, float]:
    """Return the longest stall of the loop and the total time, in ms."""
    for file in files:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    async def main() -> tuple[float, float]:
        longest = 0.0
        start = last = perf_counter()
        done = anyio.Event()

        async def send() -> None:
            await method(sock, files, size)
            done.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send)
            while not done.is_set():
                await checkpoint()
                now = perf_counter()
                longest = max(longest, now - last)
                last = now
        return longest * 1000, (last - start) * 1000

    with reader_connection() as sock:
        sock.setblocking(False)
        return anyio.run(main, backend=loop)


def write_random(file: BinaryIO, size: int) -> None:
    """Write random bytes, and sync them to disk, so that the page cache can drop their pages."""
    file.write(random.Random(size).randbytes(size))
    os.fsync(file.fileno())
