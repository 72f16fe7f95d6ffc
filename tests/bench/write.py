"""Measure the sender's CPU time for iob_write and filters.

Callbacks: iob_write writes a batch through os.write to a file in memory, which is overwritten each
time (a pipe would wake its reader at some writes and not at others). The other methods make the
system calls by hand, without a loop for partial writes, which such a file never has. "os.write"
makes one call for each buffer; "os.writev" makes one call for all of them, and gets its list ready
made. All methods read files by pread.

gzip: text is compressed at level 6, and the output is discarded. The gzip command has its own
implementation of deflate, older than zlib's. Its CPU time includes the start of the process, about
1 ms of 270.

TLS 1.3: 1 MiB from memory is sent over TCP on loopback. Handshakes are not measured. The reader
counts the bytes and doesn't decrypt them, because it stands for a peer on another machine.
SSLSocket.sendall blocks; the other methods wait in an event loop. asyncio's clock stops when the
reader has all bytes, because drain() returns while the transport still buffers some. "64 KiB" and
"1 MiB" are the size of each write, followed by drain(), with asyncio, and the limit of a call with
iob_write.

System calls are counted by strace in a separate run, without memory management and the lseek back
to the start of the file. strace slows down the sender, so the reader always keeps up, and waiting
for room is not among the calls.
"""

from __future__ import annotations

import asyncio
import os
import pydoc_data.topics
import random
import selectors
import shutil
import ssl
import subprocess
import sys
import tempfile
import zlib
from contextlib import suppress
from functools import cache, partial
from itertools import repeat
from pathlib import Path
from statistics import median
from time import process_time
from typing import TYPE_CHECKING, Any

import trustme

from iobatch import IOB_AGAIN, IOB_ERROR, IOBatch, iob_write
from iobatch.filters import TLS, Filter
from tests.bench.plot import write_bar_chart
from tests.bench.reader import SENDER, discard, end_with_parent, pin_to_processor, reader_connection
from tests.bench.report import format_spread, print_table, ratios, report_missing, run_in_turn

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from tests.bench.report import Options

    # Runs a number of rounds; returns the CPU seconds per round.
    Method = Callable[[int], float]

KIB = 1024
MIB = 1024 * KIB
PIECE = 64 * KIB
HEADER = b"h" * 200
BODY = random.Random(1).randbytes(MIB)
RECORD = 16 * KIB
GZIP_COMMAND = "gzip command"
RECORD_OVERHEAD = 22  # bytes in a TLS 1.3 record: header 5, content type 1, tag 16


# Callbacks. Each method writes `buffers` and `size` bytes of a file to a descriptor in each round.


def by_iob_write(fd: int, buffers: Sequence[bytes], file: int, size: int, rounds: int) -> None:
    batch = IOBatch()
    for _ in range(rounds):
        for buffer in buffers:
            batch.addbuf(buffer)
        batch.addfile(file, 0, size)
        while iob_write(fd, batch, os.write) > 0:
            pass
        os.lseek(fd, 0, os.SEEK_SET)


def by_write(fd: int, buffers: Sequence[bytes], file: int, size: int, rounds: int) -> None:
    for _ in range(rounds):
        for buffer in buffers:
            os.write(fd, buffer)
        for offset in range(0, size, PIECE):
            os.write(fd, os.pread(file, PIECE, offset))
        os.lseek(fd, 0, os.SEEK_SET)


def by_writev(fd: int, buffers: Sequence[bytes], file: int, size: int, rounds: int) -> None:
    for _ in range(rounds):
        first = [os.pread(file, PIECE, 0)] if size else []
        os.writev(fd, [*buffers, *first])
        for offset in range(PIECE, size, PIECE):
            os.write(fd, os.pread(file, PIECE, offset))
        os.lseek(fd, 0, os.SEEK_SET)


def time_file_writes(
    method: Callable[[int, Sequence[bytes], int, int, int], None],
    buffers: Sequence[bytes],
    size: int,
    rounds: int,
) -> float:
    """Return the CPU seconds per round, which writes to a file in memory from its start."""
    with os.fdopen(os.memfd_create("file"), "wb", 0) as file, tempfile.TemporaryFile() as body:
        body.write(BODY[:size])
        body.flush()
        method(file.fileno(), buffers, body.fileno(), size, 1)
        start = process_time()
        method(file.fileno(), buffers, body.fileno(), size, rounds)
        return (process_time() - start) / rounds


# gzip


@cache
def text() -> bytes:
    """Return 8 MiB of repeated English text; gzip's 32 KiB window can't see the repetition."""
    source = Path(pydoc_data.topics.__file__).read_bytes()
    return (source * (8 * MIB // len(source) + 1))[: 8 * MIB]


def by_filter(rounds: int) -> float:
    """Compress by iob_write through a Filter, 1 MiB at a time."""
    start = process_time()
    out = Filter(zlib.compressobj(6, wbits=31), lambda _, view: len(view))
    batch = IOBatch()
    view = memoryview(text())
    for offset in range(0, rounds * MIB, MIB):
        batch.addbuf(view[offset : offset + MIB])
        while iob_write(None, batch, out):
            pass
    while out.finish(None):
        pass
    return (process_time() - start) / rounds


def by_zlib(rounds: int) -> float:
    """Compress by zlib alone."""
    start = process_time()
    compressor = zlib.compressobj(6, wbits=31)
    view = memoryview(text())[: rounds * MIB]
    for offset in range(0, len(view), PIECE):
        compressor.compress(view[offset : offset + PIECE])
    compressor.flush()
    return (process_time() - start) / rounds


def by_gzip(rounds: int) -> float:
    """Compress by the gzip command."""
    with tempfile.TemporaryFile() as file:
        file.write(text()[: rounds * MIB])
        file.seek(0)
        command = subprocess.Popen(["gzip", "-6"], stdin=file, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(command.pid, 0)
    command.returncode = os.waitstatus_to_exitcode(status)
    assert not command.returncode
    return (usage.ru_utime + usage.ru_stime) / rounds


# TLS. Each method gets a connected socket, and returns the CPU seconds of all responses.


def by_tls(context: ssl.SSLContext, sock: socket.socket, rounds: int, limit: int) -> float:
    """Send by iob_write through Filter(TLS(...)), `limit` bytes at a time."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = TLS(context.wrap_bio(incoming, outgoing, server_side=True), incoming, outgoing)
    out = Filter(tls)
    while not tls.receive(sock.recv(PIECE)):  # until the request arrives
        out.drain(sock)
    return send_responses(sock, rounds, out, out.drain, limit)


def by_socket(context: ssl.SSLContext, sock: socket.socket, rounds: int) -> float:
    """Send by iob_write through ssl.SSLSocket.send."""
    with context.wrap_socket(sock, server_side=True) as conn:
        conn.recv(1)
        return send_responses(conn, rounds, ssl.SSLSocket.send, lambda _: 0, PIECE)


def send_responses(
    sock: socket.socket,
    rounds: int,
    callback: Callable[..., int],
    drain: Callable[[Any], int],
    limit: int,
) -> float:
    """Send the responses from a selectors loop."""
    sock.setblocking(False)
    with selectors.DefaultSelector() as selector:
        selector.register(sock, selectors.EVENT_WRITE)
        start = process_time()
        for _ in range(rounds):
            batch = IOBatch()
            batch.addbuf(BODY)
            while nbytes := iob_write(sock, batch, callback, limit=limit) or drain(sock):
                if nbytes == IOB_AGAIN:
                    selector.select()
                elif nbytes == IOB_ERROR:
                    raise batch.error or OSError("the filter failed")
        return process_time() - start


def by_sendall(context: ssl.SSLContext, sock: socket.socket, rounds: int) -> float:
    """Send by ssl.SSLSocket.sendall."""
    with context.wrap_socket(sock, server_side=True) as conn:
        conn.recv(1)
        start = process_time()
        for _ in range(rounds):
            conn.sendall(BODY)
        return process_time() - start


def by_asyncio(context: ssl.SSLContext, sock: socket.socket, rounds: int, size: int) -> float:
    """Send by an asyncio stream, `size` bytes at a time."""
    view = memoryview(BODY)

    async def run() -> float:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[float] = loop.create_future()

        async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readexactly(1)
            start = process_time()
            for _ in range(rounds):
                for offset in range(0, MIB, size):
                    writer.write(view[offset : offset + size])
                    await writer.drain()
            await reader.readexactly(1)
            done.set_result(process_time() - start)
            writer.transport.abort()

        reader = asyncio.StreamReader()
        sock.setblocking(False)
        await loop.connect_accepted_socket(
            lambda: asyncio.StreamReaderProtocol(reader, respond), sock, ssl=context
        )
        return await done

    return asyncio.run(run())


@cache
def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return the TLS contexts of the sender and the reader."""
    authority = trustme.CA()
    ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    theirs.minimum_version = ssl.TLSVersion.TLSv1_3
    ours.num_tickets = 0  # the reader counts the bytes of responses only
    authority.issue_cert("localhost").configure_cert(ours)
    authority.configure_trust(theirs)
    return ours, theirs


def read_responses(sock: socket.socket, rounds: int) -> None:
    """Request responses, discard them, and report to the sender that all have arrived."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    sslobject = contexts()[1].wrap_bio(incoming, outgoing, server_hostname="localhost")
    while True:
        try:
            sslobject.do_handshake()
            break
        except ssl.SSLWantReadError:
            sock.sendall(outgoing.read())
            incoming.write(sock.recv(RECORD))
    sslobject.write(b"?")
    sock.sendall(outgoing.read())
    discard(sock, rounds * MIB // RECORD * (RECORD + RECORD_OVERHEAD))
    sslobject.write(b".")
    sock.sendall(outgoing.read())
    with suppress(ConnectionResetError):
        sock.recv(1)  # wait for the end of the stream


def over_tls(method: Callable[[ssl.SSLContext, socket.socket, int], float], rounds: int) -> float:
    """Return the CPU seconds per response of a TLS method."""
    context = contexts()[0]  # cached before the fork, so that the reader has the same contexts
    with reader_connection(read=partial(read_responses, rounds=rounds)) as sock:
        return method(context, sock, rounds) / rounds


# The workloads: for each the methods, iobatch's first, and the number of rounds in a turn.


def file_methods(buffers: Sequence[bytes], size: int = 0) -> dict[str, Method]:
    """Return the methods to write to a file."""
    methods = {"iob_write": by_iob_write, "os.write": by_write, "os.writev": by_writev}
    return {
        name: partial(time_file_writes, method, buffers, size) for name, method in methods.items()
    }


WORKLOADS: Mapping[str, tuple[Mapping[str, Method], int]] = {
    "64 buffers of 200 B": (file_methods([HEADER] * 64), 5000),
    "200 B + 16 KiB file": (file_methods([HEADER], 16 * KIB), 5000),
    "1 MiB buffer": (file_methods([BODY]), 200),
    "200 B + 1 MiB file": (file_methods([HEADER], MIB), 200),
    "gzip, per MiB": (
        {"iob_write, Filter(zlib)": by_filter, "zlib": by_zlib, GZIP_COMMAND: by_gzip},
        8,
    ),
    "TLS 1.3, per MiB": (
        {
            "iob_write, Filter(TLS), 64 KiB": partial(over_tls, partial(by_tls, limit=PIECE)),
            "iob_write, Filter(TLS), 1 MiB": partial(over_tls, partial(by_tls, limit=MIB)),
            "iob_write, SSLSocket.send": partial(over_tls, by_socket),
            "SSLSocket.sendall": partial(over_tls, by_sendall),
            "asyncio, 64 KiB": partial(over_tls, partial(by_asyncio, size=PIECE)),
            "asyncio, 1 MiB": partial(over_tls, partial(by_asyncio, size=MIB)),
        },
        48,
    ),
}


def run_traced(rounds: int) -> None:
    """Run each method for one round, for one round again, and for 1 + rounds rounds.

    A getppid() after each run is a mark in strace's log. The first run contains the calls that a
    process makes only once. The calls of the others differ by those of `rounds` rounds.
    """
    end_with_parent()
    for methods, _ in WORKLOADS.values():
        for method in methods.values():
            for count in (1, 1, 1 + rounds):
                method(count)
                os.getppid()


def count_system_calls(rounds: int) -> Iterator[str]:
    """Yield the system calls per round of each method, counted by strace."""
    code = f"from tests.bench.write import run_traced; run_traced({rounds})"
    with tempfile.NamedTemporaryFile() as log:
        strace = ["strace", "-qq", "-e", "signal=none", "-e", "trace=!%memory,lseek"]
        subprocess.run([*strace, "-o", log.name, sys.executable, "-c", code], check=True)
        parts = log.read().split(b"getppid")
    for once, more in zip(parts[1::3], parts[2::3], strict=True):
        calls = more.count(b"\n") - once.count(b"\n")
        yield f"{calls / rounds:.1f}"


def run(options: Options) -> None:
    """Print a table for each workload, and plot the CPU time per MiB."""
    pin_to_processor(SENDER)
    medians: dict[str, dict[str, float]] = {}
    calls: Iterator[str] = repeat("?")
    if shutil.which("strace"):
        calls = count_system_calls(options.rounds(24))
    else:
        report_missing(options, "strace", "apt-get install strace")
    for workload, (methods, count) in WORKLOADS.items():
        rounds = options.rounds(count)
        once = {name: partial(method, rounds) for name, method in methods.items()}
        results = run_in_turn(once, options.turns)
        ours = next(iter(results.values()))
        print_table(
            f"iob_write: {workload}",
            ["method", "CPU, us", "iob_write / method", "system calls"],
            (
                [
                    name,
                    format_spread([each * 1e6 for each in seconds], 1),
                    format_spread(ratios(ours, seconds)),
                    "-" if name == GZIP_COMMAND else count,
                ]
                for (name, seconds), count in zip(results.items(), calls, strict=False)
            ),
        )
        medians[workload] = {name: median(seconds) * 1e3 for name, seconds in results.items()}
    if options.plots is not None:
        shown = ["1 MiB buffer", "gzip, per MiB", "TLS 1.3, per MiB"]
        write_bar_chart(
            options.plots / "write.svg",
            "iob_write: CPU per MiB; shorter is better",
            "ms",
            {workload: medians[workload] for workload in shown},
        )
