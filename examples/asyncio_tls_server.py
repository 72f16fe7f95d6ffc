"""Serve a directory over HTTP and TLS: `python asyncio_tls_server.py CERT KEY DIRECTORY [PORT]`.

A connection reads its socket itself, and gives the bytes to TLS. One BatchWriter sends the head of
each response over TLS as it is, and the body through gzip and chunked coding above the same TLS, if
the client accepts them. What it leaves out is in `iobatch.httpd`. It needs httptools.
"""

import asyncio
import os
import re
import socket
import ssl
import sys
import zlib
from contextlib import suppress
from email.utils import formatdate
from http import HTTPStatus
from mimetypes import guess_type
from pathlib import Path
from urllib.parse import unquote_to_bytes

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser

from iobatch import IOBatch
from iobatch.aio import BatchWriter
from iobatch.filters import TLS, Chunked, Filter

GZIP = re.compile(rb"(^|,)\s*gzip\s*($|,|;\s*q=(1|0\.0*[1-9]))", re.IGNORECASE)
CODED = "Content-Encoding: gzip\r\nTransfer-Encoding: chunked"


class Connection:
    """A client's connection. The parser calls on_url, on_header and on_message_complete."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, root: Path) -> None:
        """Wait for the handshake."""
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.sslobject = context.wrap_bio(incoming, outgoing, server_side=True)
        self.tls = TLS(self.sslobject, incoming, outgoing)
        self.secure = Filter(self.tls)
        self.sock, self.root = sock, root
        self.writer = BatchWriter(sock, through=self.secure, stall_timeout=30)
        self.parser, self.target, self.gzip = HttpRequestParser(self), b"", False
        self.requests: list[tuple[bytes, bytes, bool]] = []  # method, target, may be gzip
        self.ended = False  # no more requests are accepted

    async def run(self) -> None:
        """Answer requests until the client is idle, ends its stream, or wants no more."""
        async with self.writer:
            async with asyncio.timeout(10):
                while self.sslobject.version() is None:
                    await self.receive()
            while not self.ended:
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
            if not self.ended:
                self.ended = True
                self.requests.append((b"", b"", False))
        finally:
            await self.writer.flush()  # a message of the handshake, or an alert

    def on_url(self, part: bytes) -> None:
        """Collect the target of a request, up to a length that no path has."""
        self.target = (self.target + part)[:16384]

    def on_header(self, name: bytes, value: bytes) -> None:
        """Look for gzip among the codings that the client accepts."""
        if name.lower() == b"accept-encoding" and GZIP.search(value):
            self.gzip = self.parser.get_http_version() == "1.1"  # older clients know no chunks

    def on_message_complete(self) -> None:
        """Queue a request."""
        if not self.ended:
            self.requests.append((self.parser.get_method(), self.target, self.gzip))
            self.ended = self.parser.should_upgrade() or not self.parser.should_keep_alive()
        self.target, self.gzip = b"", False

    async def respond(self, method: bytes, target: bytes, gzip: bool) -> None:  # noqa: FBT001
        """Answer a request."""
        if method not in {b"GET", b"HEAD"}:
            status = HTTPStatus.METHOD_NOT_ALLOWED if method else HTTPStatus.BAD_REQUEST
            await self.writer.write(self.head(status))
            return
        try:
            path = self.root / os.fsdecode(unquote_to_bytes(target.partition(b"?")[0])).lstrip("/")
            path = (path / "index.html" if path.is_dir() else path).resolve()
            if not path.is_relative_to(self.root) or not path.is_file():
                raise FileNotFoundError(path)
            file = path.open("rb", buffering=0)
        except (OSError, ValueError, RuntimeError):  # a null byte; a loop of links
            await self.writer.write(self.head(HTTPStatus.NOT_FOUND))
            return
        with file:
            size = os.fstat(file.fileno()).st_size
            gzip = gzip and size > 0
            head = self.head(HTTPStatus.OK, CODED if gzip else f"Content-Length: {size}", path.name)
            body = IOBatch() if gzip else head
            body.addfile(file, 0, size if method == b"GET" else 0)
            await self.writer.write(head)  # which is empty now
            if body:
                coded = Filter(zlib.compressobj(wbits=31), Filter(Chunked(), self.secure))
                await self.writer.write(body, through=coded)
                await self.writer.finish(through=coded, until=self.secure)

    def head(self, status: HTTPStatus, size: str = "Content-Length: 0", path: str = "") -> IOBatch:
        """Return the head of a response."""
        kind, coding = guess_type(path)
        head = IOBatch()
        head.adds(
            f"HTTP/1.1 {status} {status.phrase}\r\nDate: {formatdate(usegmt=True)}\r\n"
            f"Content-Type: {(not coding and kind) or 'application/octet-stream'}\r\n"
            f"{size}\r\nVary: Accept-Encoding\r\nAllow: GET, HEAD\r\n"
            f"Connection: {'close' if self.ended and not self.requests else 'keep-alive'}\r\n\r\n"
        )
        return head


async def serve(sock: socket.socket, context: ssl.SSLContext, root: Path) -> None:
    """Serve one client; report an error of its connection."""
    with sock:
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await Connection(sock, context, root).run()
        except ssl.SSLEOFError:
            pass  # many clients end an idle connection without close_notify (RFC 9112, 9.8)
        except OSError as exc:
            print(f"connection lost: {exc!r}", file=sys.stderr)


async def main(context: ssl.SSLContext, root: Path, port: int = 8000) -> None:
    """Serve until interrupted."""
    loop = asyncio.get_running_loop()
    tasks = set()  # the loop holds weak references only
    with socket.create_server(("127.0.0.1", port)) as listener:
        listener.setblocking(False)
        print(f"listening on https://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        while True:
            try:
                sock, _ = await loop.sock_accept(listener)
            except OSError:  # no descriptor is free, or the client has disconnected
                await asyncio.sleep(0.1)
                continue
            # A TaskGroup would end all connections when one of them fails unexpectedly.
            tasks.add(task := loop.create_task(serve(sock, context, root)))
            task.add_done_callback(tasks.discard)


if __name__ == "__main__":
    tls_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls_context.load_cert_chain(*sys.argv[1:3])
    asyncio.run(main(tls_context, Path(sys.argv[3]).resolve(), *map(int, sys.argv[4:])))
