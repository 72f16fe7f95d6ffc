"""What iob_write and filters cost the sender.

Callbacks: a batch goes through os.write to a file in memory, over and over (a pipe would wake its
reader at some writes and not at others). The peers are the system calls by hand, without a loop for
what was not taken: such a file takes all it is given. `os.write` makes a call for each buffer,
`os.writev` one for them all, and has its list ready. All read files with pread.

gzip: level 6, of text, the output is dropped. The gzip command has a deflate of its own, older
than zlib's, and its CPU time includes the start of the process, about 1 ms in 270.

TLS 1.3: a MiB from memory over TCP on loopback. Handshakes are not counted. The reader counts the
bytes and doesn't decrypt them, since it stands for peers on other machines. SSLSocket.sendall
blocks, the others wait in a loop; asyncio's figure ends when the reader has everything, as drain()
leaves some in the buffer. With asyncio, "64 KiB" and "1 MiB" are what is written at a time, each
followed by drain(); with iob_write they are the limit of a call.

System calls are counted by strace in a run of its own, without those for memory and the lseek that
goes back to the file's start. strace slows the sender down, so its reader never keeps it waiting.
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
from tests.bench.plot import bars
from tests.bench.reader import SENDER, drop, dropped, end_with_parent, pin
from tests.bench.report import in_turn, leave_out, ratios, spread, table

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from tests.bench.report import Options

    Way = Callable[[int], float]  # do it so often; return the CPU seconds of one time

KIB = 1024
MIB = 1024 * KIB
PIECE = 64 * KIB
HEADER = b"h" * 200
BODY = random.Random(1).randbytes(MIB)
RECORD = 16 * KIB
COMMAND = "gzip command"
OVERHEAD = 22  # of a record: header, type and tag


# Callbacks. The ways write `buffers` and so many bytes of a file to a descriptor, again and again.


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


def to_file(
    way: Callable[[int, Sequence[bytes], int, int, int], None],
    buffers: Sequence[bytes],
    size: int,
    rounds: int,
) -> float:
    """Write it so often, over what was written before."""
    with os.fdopen(os.memfd_create("file"), "wb", 0) as file, tempfile.TemporaryFile() as body:
        body.write(BODY[:size])
        body.flush()
        way(file.fileno(), buffers, body.fileno(), size, 1)
        start = process_time()
        way(file.fileno(), buffers, body.fileno(), size, rounds)
        return (process_time() - start) / rounds


# gzip


@cache
def text() -> bytes:
    """Return 8 MiB of English: beyond its window of 32 KiB gzip doesn't see what comes again."""
    source = Path(pydoc_data.topics.__file__).read_bytes()
    return (source * (8 * MIB // len(source) + 1))[: 8 * MIB]


def by_filter(rounds: int) -> float:
    """Compress MiBs by iob_write through a Filter."""
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
    """Compress by nothing but zlib."""
    start = process_time()
    compressor = zlib.compressobj(6, wbits=31)
    view = memoryview(text())[: rounds * MIB]
    for offset in range(0, len(view), PIECE):
        compressor.compress(view[offset : offset + PIECE])
    compressor.flush()
    return (process_time() - start) / rounds


def by_gzip(rounds: int) -> float:
    """Compress by the command."""
    with tempfile.TemporaryFile() as file:
        file.write(text()[: rounds * MIB])
        file.seek(0)
        command = subprocess.Popen(["gzip", "-6"], stdin=file, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(command.pid, 0)
    command.returncode = os.waitstatus_to_exitcode(status)
    assert not command.returncode
    return (usage.ru_utime + usage.ru_stime) / rounds


# TLS. The ways get a connected socket, and return the CPU seconds that their responses took.


def by_tls(context: ssl.SSLContext, sock: socket.socket, rounds: int, limit: int) -> float:
    """Send by iob_write through Filter(TLS(...)), `limit` bytes at a time."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = TLS(context.wrap_bio(incoming, outgoing, server_side=True), incoming, outgoing)
    out = Filter(tls)
    while not tls.receive(sock.recv(PIECE)):  # up to the request
        out.drain(sock)
    return serve(sock, rounds, out, out.drain, limit)


def by_socket(context: ssl.SSLContext, sock: socket.socket, rounds: int) -> float:
    """Send by iob_write through ssl.SSLSocket.send."""
    with context.wrap_socket(sock, server_side=True) as conn:
        conn.recv(1)
        return serve(conn, rounds, ssl.SSLSocket.send, lambda _: 0, PIECE)


def serve(
    sock: socket.socket,
    rounds: int,
    callback: Callable[..., int],
    drain: Callable[[Any], int],
    limit: int,
) -> float:
    """Serve from a selectors loop."""
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
    """Send by a stream of asyncio, `size` bytes at a time."""
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
    """Return the sender's and the reader's."""
    authority = trustme.CA()
    ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    theirs.minimum_version = ssl.TLSVersion.TLSv1_3
    ours.num_tickets = 0  # so that nothing but responses is to be counted
    authority.issue_cert("localhost").configure_cert(ours)
    authority.configure_trust(theirs)
    return ours, theirs


def read(sock: socket.socket, rounds: int) -> None:
    """Ask for responses, drop them, and say that all have come."""
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
    drop(sock, rounds * MIB // RECORD * (RECORD + OVERHEAD))
    sslobject.write(b".")
    sock.sendall(outgoing.read())
    with suppress(ConnectionResetError):
        sock.recv(1)  # the end


def over_tls(way: Callable[[ssl.SSLContext, socket.socket, int], float], rounds: int) -> float:
    """Send so many responses."""
    context = contexts()[0]  # the reader shares them
    with dropped(read=partial(read, rounds=rounds)) as sock:
        return way(context, sock, rounds) / rounds


# For each work its ways, ours first, and how often to do it.


def callbacks(buffers: Sequence[bytes], size: int = 0) -> dict[str, Way]:
    """Return the ways to write to a file."""
    ways = {"iob_write": by_iob_write, "os.write": by_write, "os.writev": by_writev}
    return {name: partial(to_file, way, buffers, size) for name, way in ways.items()}


WORK: Mapping[str, tuple[Mapping[str, Way], int]] = {
    "64 buffers of 200 B": (callbacks([HEADER] * 64), 5000),
    "200 B + 16 KiB file": (callbacks([HEADER], 16 * KIB), 5000),
    "1 MiB buffer": (callbacks([BODY]), 200),
    "200 B + 1 MiB file": (callbacks([HEADER], MIB), 200),
    "gzip, each MiB": (
        {"iob_write, Filter(zlib)": by_filter, "zlib": by_zlib, COMMAND: by_gzip},
        8,
    ),
    "TLS 1.3, each MiB": (
        {
            "iob_write, Filter(TLS)": partial(over_tls, partial(by_tls, limit=PIECE)),
            "the same, 1 MiB": partial(over_tls, partial(by_tls, limit=MIB)),
            "iob_write, SSLSocket.send": partial(over_tls, by_socket),
            "SSLSocket.sendall": partial(over_tls, by_sendall),
            "asyncio, 64 KiB": partial(over_tls, partial(by_asyncio, size=PIECE)),
            "asyncio, 1 MiB": partial(over_tls, partial(by_asyncio, size=MIB)),
        },
        48,
    ),
}


def be_traced(times: int) -> None:
    """Be what strace looks at: go each way once, and so often more, with marks in between."""
    end_with_parent()
    for ways, _ in WORK.values():
        for way in ways.values():
            way(1)  # what comes but once in a process
            os.getppid()
            way(1)
            os.getppid()
            way(1 + times)
            os.getppid()


def syscalls(times: int) -> Iterator[str]:
    """Count for each way the system calls of one time."""
    code = f"from tests.bench.write import be_traced; be_traced({times})"
    with tempfile.NamedTemporaryFile() as log:
        strace = ["strace", "-qq", "-e", "signal=none", "-e", "trace=!%memory,lseek"]
        subprocess.run([*strace, "-o", log.name, sys.executable, "-c", code], check=True)
        parts = log.read().split(b"getppid")
    for once, more in zip(parts[1::3], parts[2::3], strict=True):
        calls = more.count(b"\n") - once.count(b"\n")
        yield f"{calls / times:.1f}"


def run(options: Options) -> None:
    """Print a table for each work, and plot what a MiB costs."""
    pin(SENDER)
    medians: dict[str, dict[str, float]] = {}
    calls: Iterator[str] = repeat("?")
    if shutil.which("strace"):
        calls = syscalls(options.rounds(24))
    else:
        leave_out(options, "strace", "apt-get install strace")
    for work, (ways, count) in WORK.items():
        rounds = options.rounds(count)
        once = {name: partial(way, rounds) for name, way in ways.items()}
        results = in_turn(once, options.turns)
        ours = next(iter(results.values()))
        table(
            f"iob_write: {work}",
            ["way", "CPU, us", "iob_write / this", "system calls"],
            (
                [
                    name,
                    spread([each * 1e6 for each in seconds], 1),
                    spread(ratios(ours, seconds)),
                    "-" if name == COMMAND else count,
                ]
                for (name, seconds), count in zip(results.items(), calls, strict=False)
            ),
        )
        medians[work] = {name: median(seconds) * 1e3 for name, seconds in results.items()}
    if options.plots is not None:
        shown = ["1 MiB buffer", "gzip, each MiB", "TLS 1.3, each MiB"]
        bars(
            options.plots / "write.svg",
            "iob_write: CPU for each MiB; less is better",
            "ms",
            {work: medians[work] for work in shown},
        )
