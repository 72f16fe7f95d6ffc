"""Serve a directory over HTTP and TLS, with gzip for clients that accept it. It needs httptools."""

import argparse
import asyncio
import re
import socket
import ssl
import sys
import zlib
from contextlib import suppress
from email.utils import formatdate
from pathlib import Path
from urllib.parse import unquote

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser

from iobatch import IOBatch
from iobatch.aio import BatchWriter
from iobatch.filters import TLS, Chunked, Filter


class Connection:
    """A client's connection. The parser calls on_url, on_header and on_message_complete."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, directory: str) -> None:
        """Wait for the handshake."""
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.sslobject = context.wrap_bio(incoming, outgoing, server_side=True)
        self.tls = TLS(self.sslobject, incoming, outgoing)
        self.sock, self.root, self.secure = sock, Path(directory).resolve(), Filter(self.tls)
        self.writer = BatchWriter(sock, through=self.secure, stall_timeout=30)
        self.parser, self.target, self.gzip = HttpRequestParser(self), b"", False
        self.requests: list[tuple[bytes, str, bool]] = []  # method, path, whether to use gzip
        self.ended = False  # when it has ended, no request is accepted any more

    async def run(self) -> None:
        """Answer requests until the client is idle, ends its stream, or wants no more."""
        async with self.writer:
            with suppress(ssl.SSLZeroReturnError):  # requests and the end may come with it
                async with asyncio.timeout(10):
                    while self.sslobject.version() is None:
                        await self.receive()
            while self.requests or not self.ended:
                with suppress(TimeoutError, ssl.SSLZeroReturnError):
                    async with asyncio.timeout(60):
                        while not (self.requests or self.tls.ended):
                            await self.receive()
                # In TLS 1.3 a client may end its stream, and read the answers afterwards.
                self.ended = self.ended or self.tls.ended or not self.requests
                while self.requests:
                    await self.respond(*self.requests.pop(0))
            await self.writer.finish()

    async def receive(self) -> None:
        """Read from the socket, and parse the requests in it."""
        data = await asyncio.get_running_loop().sock_recv(self.sock, 65536)
        try:
            self.parser.feed_data(self.tls.receive(data))
        except (HttpParserError, HttpParserUpgrade):
            self.requests += [] if self.ended else [(b"", "", False)]
            self.ended = True
        finally:
            await self.writer.flush()  # a message of the handshake, or an alert
        await asyncio.sleep(0)  # sock_recv does not suspend while there is something to read

    def on_url(self, part: bytes) -> None:
        """Collect the target of a request, up to a length that no path has."""
        self.target = (self.target + part)[:16384]

    def on_header(self, name: bytes, value: bytes) -> None:
        """Look for gzip among the codings that the client accepts."""
        pattern = rb"(^|,)\s*gzip\s*($|,|;\s*q=(1|0\.0*[1-9]))"
        if name.lower() == b"accept-encoding" and re.search(pattern, value.lower()):
            self.gzip = self.parser.get_http_version() == "1.1"  # older clients know no chunks

    def on_message_complete(self) -> None:
        """Queue a request."""
        if not self.ended:
            path = unquote(self.target.partition(b"?")[0], errors="surrogateescape")
            self.requests.append((self.parser.get_method(), path, self.gzip))
            self.ended = self.parser.should_upgrade() or not self.parser.should_keep_alive()
        self.target, self.gzip = b"", False

    async def respond(self, method: bytes, path: str, gzip: bool) -> None:  # noqa: FBT001
        """Send a response."""
        head, body = IOBatch(), IOBatch()
        status = "405 Method Not Allowed" if method else "400 Bad Request"
        if method in {b"GET", b"HEAD"}:
            status = "404 Not Found"
            with suppress(OSError, ValueError, RuntimeError):  # RuntimeError: a loop of links
                file = self.root / path.lstrip("/")
                file = (file / "index.html" if file.is_dir() else file).resolve()
                file.relative_to(self.root)  # raises ValueError outside
                body.addfile(file)  # raises for all except regular files
                status = "200 OK"
        length = f"Content-Length: {body.bytesleft}"
        if gzip := gzip and bool(body):
            length = "Content-Encoding: gzip\r\nTransfer-Encoding: chunked"
        head.adds(
            f"HTTP/1.1 {status}\r\nDate: {formatdate(usegmt=True)}\r\nAllow: GET, HEAD\r\n"
            f"Vary: Accept-Encoding\r\n{length}\r\n"
            f"Connection: {'close' if self.ended and not self.requests else 'keep-alive'}\r\n\r\n"
        )
        if method == b"HEAD":
            body.reset()
        if not gzip:
            head.extend(body)
        await self.writer.write(head)
        if body:
            coded = Filter(zlib.compressobj(wbits=31), Filter(Chunked(), self.secure))
            await self.writer.write(body, through=coded)
            await self.writer.finish(through=coded, until=self.secure)


async def serve(sock: socket.socket, context: ssl.SSLContext, directory: str) -> None:
    """Serve one client; report an error of its connection."""
    with sock:
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await Connection(sock, context, directory).run()
        except ssl.SSLEOFError:
            pass  # many clients end an idle connection without close_notify (RFC 9112, 9.8)
        except OSError as exc:
            print(f"connection lost: {exc!r}", file=sys.stderr)


async def main(cert: str, key: str, directory: str, port: int) -> None:
    """Serve until interrupted."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    tasks: set[asyncio.Task[None]] = set()  # not a TaskGroup: one fault would end them all
    with socket.create_server(("127.0.0.1", port)) as listener:
        listener.setblocking(False)
        print(f"listening on https://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        while True:
            with suppress(OSError):  # no descriptor is free, or the client has disconnected
                sock, _ = await asyncio.get_running_loop().sock_accept(listener)
                tasks.add(task := asyncio.create_task(serve(sock, context, directory)))
                task.add_done_callback(tasks.discard)
                continue
            await asyncio.sleep(0.1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("cert", "key", "directory"):
        parser.add_argument(name, metavar=name.upper())
    parser.add_argument("port", metavar="PORT", nargs="?", type=int, default=8000)
    asyncio.run(main(**vars(parser.parse_args())))
