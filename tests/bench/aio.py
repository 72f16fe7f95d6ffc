"""Measure BatchWriter against asyncio's own ways: CPU time for each response, in turn, as ratios.

A response is 200 bytes and a file. Run it as `python -m tests.bench.aio [PAIRS [asyncio|uvloop]]`.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from time import process_time
from typing import TYPE_CHECKING, BinaryIO

from iobatch import IOBatch
from iobatch.aio import BatchWriter, send_to_stream

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    Way = Callable[[int, BinaryIO, int, int], Awaitable[float]]

HEADER = b"h" * 200
KIB = 1024
# The size of the file, and how often it is sent in a run.
WORK = [(KIB, 20_000), (16 * KIB, 5_000), (128 * KIB, 1_000), (1024 * KIB, 200)]

READER = """
import os, socket
if os.cpu_count() > 1:
    os.sched_setaffinity(0, {1})
with socket.create_server(("127.0.0.1", 0)) as listener:
    print(listener.getsockname()[1], flush=True)
    buffer = bytearray(1 << 20)
    while True:
        with listener.accept()[0] as sock:
            while sock.recv_into(buffer):
                pass
"""


@contextmanager
def reader() -> Iterator[int]:
    """Run a process that reads and drops everything, one connection after the other."""
    with subprocess.Popen(
        [sys.executable, "-c", READER], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline())
        process.terminate()


async def write(port: int, file: BinaryIO, size: int, rounds: int) -> float:
    """Post a batch."""
    fd = file.fileno()
    batch = IOBatch()
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.setblocking(False)
        async with BatchWriter(sock) as writer:
            start = process_time()
            for _ in range(rounds):
                batch.addbuf(HEADER)
                batch.addfile(fd, 0, size)
                await writer.write(batch)
            return process_time() - start


async def stream(port: int, file: BinaryIO, size: int, rounds: int) -> float:
    """Send a batch over a stream."""
    fd = file.fileno()
    batch = IOBatch()
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    start = process_time()
    for _ in range(rounds):
        batch.addbuf(HEADER)
        batch.addfile(fd, 0, size)
        await send_to_stream(writer, batch)
    seconds = process_time() - start
    writer.close()
    await writer.wait_closed()
    return seconds


async def writelines(port: int, file: BinaryIO, size: int, rounds: int) -> float:
    """Read the file and write it behind the header."""
    fd = file.fileno()
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    start = process_time()
    for _ in range(rounds):
        writer.writelines([HEADER, os.pread(fd, size, 0)])
        await writer.drain()
    seconds = process_time() - start
    writer.close()
    await writer.wait_closed()
    return seconds


async def sendfile(port: int, file: BinaryIO, size: int, rounds: int) -> float:
    """Write the header, and let the loop send the file."""
    loop = asyncio.get_running_loop()
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    start = process_time()
    for _ in range(rounds):
        writer.write(HEADER)
        await loop.sendfile(writer.transport, file, 0, size)
    seconds = process_time() - start
    writer.close()
    await writer.wait_closed()
    return seconds


def main() -> None:
    """Print the table."""
    pairs = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    loop = sys.argv[2] if len(sys.argv) > 2 else "asyncio"
    factory = importlib.import_module(loop).new_event_loop
    ways: list[Way] = [write, stream, writelines]
    if loop == "asyncio":
        ways.append(sendfile)  # uvloop has none
    os.sched_setaffinity(0, {0})
    names = [way.__name__ for way in ways]
    ratios = [f"write/{name}" for name in names[2:]]
    print("| file | " + " | ".join([*(f"{name}, us" for name in names), *ratios]) + " |")
    print("|---" * (1 + len(names) + len(ratios)) + "|")
    for size, rounds in WORK:
        results: dict[str, list[float]] = {name: [] for name in names}
        with reader() as port, tempfile.TemporaryFile(buffering=0) as file:
            file.write(random.Random(0).randbytes(size))
            for _ in range(pairs):
                for way in ways:
                    with asyncio.Runner(loop_factory=factory) as runner:
                        seconds = runner.run(way(port, file, size, rounds))  # type: ignore[arg-type]
                    results[way.__name__].append(seconds / rounds * 1e6)
        medians = [f"{statistics.median(results[name]):.1f}" for name in names]
        for name in names[2:]:
            each = [
                ours / theirs for ours, theirs in zip(results["write"], results[name], strict=True)
            ]
            medians.append(f"{statistics.median(each):.2f}")
        print(f"| {size // KIB} KiB | " + " | ".join(medians) + " |", flush=True)


if __name__ == "__main__":
    main()
