"""What TLS and gzip cost the sender: CPU time of one process, all ways in turn in one run.

    python -m tests.bench.tls [way ...]

A response is 1 MiB, sent over TLS 1.3 on loopback to a reader in a process of its own. The system
calls of one way are counted by `strace -c python -m tests.bench.tls "Filter(TLS)"`.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import selectors
import socket
import ssl
import sys
import time
import zlib
from contextlib import suppress
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any

import trustme

from iobatch import IOB_AGAIN, IOB_ERROR, IOBatch, iob_write
from iobatch.filters import TLS, Filter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

MIB = 1024 * 1024
PIECE = 64 * 1024
TURNS = 15  # of each way
RESPONSES = 48  # in a turn
RECORD = 16 * 1024
OVERHEAD = 22  # of a record: header, type and tag

BODY = random.Random(1).randbytes(MIB)
TEXT = b"".join(b"%x " % (number * number) for number in range(500_000))


# The ways to send. Each gets a connected socket, and returns the CPU seconds that its responses
# took after the handshake.


def by_filter(context: ssl.SSLContext, sock: socket.socket, limit: int = PIECE) -> float:
    """Send by iob_write through Filter(TLS(...)), `limit` bytes at a time."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = TLS(context.wrap_bio(incoming, outgoing, server_side=True), incoming, outgoing)
    out = Filter(tls)
    while not tls.receive(sock.recv(65536)):  # up to the request
        out.drain(sock)
    return serve(sock, out, out.drain, limit)


def by_socket(context: ssl.SSLContext, sock: socket.socket) -> float:
    """Send by iob_write through ssl.SSLSocket.send."""
    with context.wrap_socket(sock, server_side=True) as conn:
        conn.recv(1)
        return serve(conn, ssl.SSLSocket.send, lambda _: 0, PIECE)


def serve(
    sock: socket.socket, callback: Callable[..., int], drain: Callable[[Any], int], limit: int
) -> float:
    """Serve from a selectors loop."""
    sock.setblocking(False)
    with selectors.DefaultSelector() as selector:
        selector.register(sock, selectors.EVENT_WRITE)
        start = time.process_time()
        for _ in range(RESPONSES):
            batch = IOBatch()
            batch.addbuf(BODY)
            while nbytes := iob_write(sock, batch, callback, limit=limit) or drain(sock):
                if nbytes == IOB_AGAIN:
                    selector.select()
                elif nbytes == IOB_ERROR:
                    raise batch.error or OSError("the filter failed")
        return time.process_time() - start


def by_asyncio(context: ssl.SSLContext, sock: socket.socket, size: int = MIB) -> float:
    """Send by a stream of asyncio, `size` bytes at a time."""
    view = memoryview(BODY)
    done: asyncio.Future[float]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)
        start = time.process_time()
        for _ in range(RESPONSES):
            for offset in range(0, MIB, size):
                writer.write(view[offset : offset + size])
                await writer.drain()
        await reader.readexactly(1)  # drain() leaves some in the buffer
        done.set_result(time.process_time() - start)
        writer.transport.abort()

    async def run() -> float:
        nonlocal done
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        reader = asyncio.StreamReader()
        sock.setblocking(False)
        await loop.connect_accepted_socket(
            lambda: asyncio.StreamReaderProtocol(reader, serve), sock, ssl=context
        )
        return await done

    return asyncio.run(run())


WAYS = {
    "Filter(TLS)": by_filter,
    "SSLSocket.send": by_socket,
    "asyncio, 64 KiB": partial(by_asyncio, size=PIECE),
    "asyncio, 1 MiB": by_asyncio,
    "Filter, limit 1 MiB": partial(by_filter, limit=MIB),
}


def read(context: ssl.SSLContext, address: tuple[str, int], turns: int) -> None:
    """Be the reader of all turns.

    It counts bytes and does not decrypt them, as it stands for peers on other machines: they don't
    keep the sender waiting.
    """
    buffer = bytearray(MIB)
    for _ in range(turns):
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        sslobject = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
        with socket.create_connection(address) as sock:
            while True:
                try:
                    sslobject.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    sock.sendall(outgoing.read())
                    incoming.write(sock.recv(RECORD))
            sslobject.write(b"?")
            sock.sendall(outgoing.read())
            left = RESPONSES * MIB // RECORD * (RECORD + OVERHEAD)
            while left:
                left -= sock.recv_into(buffer, left if left < MIB else MIB)
            sslobject.write(b".")
            sock.sendall(outgoing.read())
            with suppress(ConnectionResetError):
                sock.recv(1)  # the end


def measure_tls(names: Iterable[str]) -> None:
    """Serve in turn by each way, and print what a MiB took."""
    authority = trustme.CA()
    ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    theirs.minimum_version = ssl.TLSVersion.TLSv1_3
    ours.num_tickets = 0  # so that nothing but responses is to be counted
    authority.issue_cert("localhost").configure_cert(ours)
    authority.configure_trust(theirs)
    ways = {name: WAYS[name] for name in names}
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)
        child = multiprocessing.get_context("fork").Process(
            target=read, args=(theirs, listener.getsockname(), TURNS * len(ways))
        )
        child.start()
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(TURNS):
            for name, way in ways.items():
                with listener.accept()[0] as sock:
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    times[name].append(way(ours, sock) / RESPONSES)
        child.join()
    report("TLS 1.3, us of CPU per MiB", times)


def by_zlib() -> None:
    """Compress by nothing but zlib."""
    compressor = zlib.compressobj(6, wbits=31)
    view = memoryview(TEXT)
    for offset in range(0, len(view), PIECE):
        compressor.compress(view[offset : offset + PIECE])
    compressor.flush()


def by_gzip_filter() -> None:
    """Compress by iob_write through a Filter."""
    out = Filter(zlib.compressobj(6, wbits=31), lambda _, view: len(view))
    batch = IOBatch()
    batch.addbuf(TEXT)
    while iob_write(None, batch, out):
        pass
    while out.finish(None):
        pass


def measure_gzip() -> None:
    """Compress in turn by both ways, and print what a MiB took."""
    ways = {"Filter(gzip)": by_gzip_filter, "zlib": by_zlib}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(TURNS):
        for name, way in ways.items():
            start = time.process_time()
            way()
            times[name].append((time.process_time() - start) * MIB / len(TEXT))
    report("gzip level 6, us of CPU per MiB", times)


def report(title: str, times: dict[str, list[float]]) -> None:
    """Print medians, and the median ratio of the first way to each one in the same turn."""
    print(title)
    first = next(iter(times.values()))
    for name, seconds in times.items():
        ratio = median(a / b for a, b in zip(first, seconds, strict=True))
        print(f"  {name:20}{median(seconds) * 1e6:10.0f}   first / this: {ratio:.3f}")


def main() -> None:
    """Measure what was asked for, or everything."""
    measure_tls(sys.argv[1:] or WAYS)
    if not sys.argv[1:]:
        measure_gzip()


if __name__ == "__main__":
    main()
