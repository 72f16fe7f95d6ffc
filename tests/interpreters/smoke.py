"""A program that sends the same bytes through every door of the library, and prints each door.

Its arguments are a folder with the file `content`, the certificate of 127.0.0.1 and its key. It
exits with an error if a door delivers other bytes. It uses no assert: `-O` would remove it.
"""

from __future__ import annotations

import asyncio
import os
import re
import runpy
import signal
import socket
import ssl
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import trio
import uvloop

import iobatch
from iobatch import IOBatch, iob_send, iob_sendall, iob_sendmsg, iob_write
from iobatch.aio import BatchWriter, send_to_stream
from iobatch.anyio import send_batch
from iobatch.filters import TLS, Chunked, Filter

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

FOLDER, CERTIFICATE, KEY = map(Path, sys.argv[1:4])
FILE = FOLDER / "content"
CONTENT = FILE.read_bytes()
EXPECTED = b"first" + CONTENT + CONTENT[10:110] + b"last"
# The loop of a busy machine is slow, and must not print a warning because of it.
SLOW = 60.0


def batch() -> IOBatch:
    """Return a batch of every kind of entry."""
    made = IOBatch()
    made.addbuf(b"first", on_release=lambda: None)
    made.addfile(FILE)
    made.addfile_close(os.open(FILE, os.O_RDONLY), 10, 100)
    made.addbufs([bytearray(b"la"), b"st"])
    return made


def check(door: str, received: bytes) -> None:
    """Print the name of a door if it has delivered what it was given."""
    if received != EXPECTED:
        sys.exit(f"{door}: {len(received)} bytes arrived, which differ from the {len(EXPECTED)}")
    print(door)


def receive_all(peer: socket.socket) -> bytes:
    """Read up to the end of the stream."""
    received = bytearray()
    while piece := peer.recv(1 << 16):
        received += piece
    return bytes(received)


def delivered(send: Callable[[socket.socket], object]) -> bytes:
    """Return what arrives at the other end of a socket over which a function sends."""
    one, peer = socket.socketpair()
    with one, peer, ThreadPoolExecutor(1) as pool:
        arriving = pool.submit(receive_all, peer)
        send(one)
        one.close()
        return arriving.result()


def use_core() -> None:
    """Send by each function of the core."""

    def repeat(call: Callable[[socket.socket, IOBatch], int]) -> bytes:
        sent = batch()

        def send(sock: socket.socket) -> None:
            while call(sock, sent) > 0:
                pass
            sent.raise_for_error()

        return delivered(send)

    check("iob_send", repeat(iob_send))
    check("iob_sendmsg", repeat(iob_sendmsg))
    check("iob_write", repeat(lambda sock, sent: iob_write(sock, sent, socket.socket.send)))
    check("iob_sendall", delivered(lambda sock: iob_sendall(sock, batch(), timeout=SLOW)))


def use_filters() -> None:
    """Send through compression and chunked coding, and through TLS."""

    def send_coded(sock: socket.socket) -> None:
        coded = Filter(zlib.compressobj(wbits=31), Filter(Chunked()))
        iob_sendall(sock, batch(), coded)
        while coded.finish(sock) > 0:
            pass

    raw, plain = delivered(send_coded), bytearray()
    while raw:
        size, _, rest = raw.partition(b"\r\n")
        plain += rest[: int(size, 16)]
        raw = rest[int(size, 16) + 2 :]
    check("Filter", zlib.decompress(plain, wbits=31))

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE, KEY)
    one, peer = socket.socketpair()
    with one, peer, ThreadPoolExecutor(1) as pool:
        arriving = pool.submit(read_tls, peer)
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        sslobject = context.wrap_bio(incoming, outgoing, server_side=True)
        tls = TLS(sslobject, incoming, outgoing)
        encrypted = Filter(tls)
        while not sslobject.version():
            tls.receive(one.recv(1 << 16))
            encrypted.drain(one)
        iob_sendall(one, batch(), encrypted)
        encrypted.finish(one)
        check("TLS", arriving.result())


def client_context() -> ssl.SSLContext:
    """Return the context of a client that does not know the authority of the certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def read_tls(peer: socket.socket) -> bytes:
    """Read up to close_notify."""
    with client_context().wrap_socket(peer, suppress_ragged_eofs=False) as secured:
        return receive_all(secured)


async def use_aio(name: str) -> None:
    """Send by posted writes, and by a stream, on the running loop."""
    loop = asyncio.get_running_loop()
    loop.slow_callback_duration = SLOW

    async def arrives(send: Callable[[socket.socket], Awaitable[object]]) -> bytes:
        one, peer = socket.socketpair()
        with peer:
            one.setblocking(False)
            arriving = loop.run_in_executor(None, receive_all, peer)
            await send(one)
            one.close()
            return await arriving

    async def post(sock: socket.socket) -> None:
        async with BatchWriter(sock, timeout=SLOW) as writer:
            await writer.write(batch())

    async def stream(sock: socket.socket) -> None:
        _, writer = await asyncio.open_connection(sock=sock)
        await send_to_stream(writer, batch())
        writer.close()
        await writer.wait_closed()

    check(f"BatchWriter on {name}", await arrives(post))
    check(f"send_to_stream on {name}", await arrives(stream))


async def use_anyio(name: str) -> None:
    """Send by send_batch."""
    if name == "asyncio":
        asyncio.get_running_loop().slow_callback_duration = SLOW
    one, peer = socket.socketpair()
    received: list[bytes] = []
    with one, peer:
        one.setblocking(False)

        async def read() -> None:
            received.append(await anyio.to_thread.run_sync(receive_all, peer))

        async with anyio.create_task_group() as group:
            group.start_soon(read)
            await send_batch(one, batch())
            one.close()
    check(f"send_batch on {name}", received[0])


def use_httpd() -> None:
    """Ask the file server, in a child that has the modes of this interpreter."""
    readable, writable = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(writable, 1)
        options = ["--port", "0", "--tls", str(CERTIFICATE), str(KEY)]
        sys.argv[:] = ["iobatch.httpd", str(FOLDER), *options]
        runpy.run_module("iobatch.httpd", run_name="__main__")
    os.close(writable)
    with os.fdopen(readable) as output:
        match = re.search(r":(\d+)/", output.readline())
    if match is None:
        sys.exit("httpd: it has not started")
    with socket.create_connection(("127.0.0.1", int(match[1]))) as sock:
        sock.settimeout(SLOW)
        with client_context().wrap_socket(sock) as secured:
            secured.sendall(b"GET /content HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            _, _, body = receive_all(secured).partition(b"\r\n\r\n")
    os.kill(child, signal.SIGTERM)
    _, status = os.waitpid(child, 0)
    check("httpd", EXPECTED if body == CONTENT and not status else body)


def main() -> None:
    """Use every door."""
    print(iobatch.COMPILED, flush=True)  # the child must not have it in its buffer
    use_httpd()
    use_core()
    use_filters()
    loops: dict[str, Any] = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
    for name, factory in loops.items():
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(use_aio(name))
    anyio.run(use_anyio, "asyncio")
    trio.run(use_anyio, "trio")


if __name__ == "__main__":
    main()
