"""Serve an ASGI application over HTTP/1.1.

asyncio's streams read, and a BatchWriter sends on a duplicate of the socket. asgi_calls.py makes
the batches. What is left out: TLS, WebSocket, and time limits for requests. It needs httptools.
"""

import argparse
import asyncio
import signal
import socket
import struct
import sys
from contextlib import closing, suppress
from pkgutil import resolve_name
from typing import Any
from urllib.parse import unquote

from asgi_calls import App, Exchange, Message, lifespan, put
from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser, parse_url

from iobatch.aio import BatchWriter

LIMIT = 65536  # bytes that may arrive without a use for them: heads, and what frames bodies
CALLS = set[asyncio.Task[None]]()  # of the application; a call may go on after its response
LINGER, GRACE = 2, 10  # seconds for a client to close, and for exchanges after a signal


class Connection:
    """A client's connection. The parser calls the methods whose names begin with on_."""

    def __init__(self, scope: Message, reader: asyncio.StreamReader, sock: socket.socket) -> None:
        """Wait for the first request. `scope` is what the scopes of all requests have in common."""
        self.scope, self.reader, self.sock = scope, reader, sock
        self.writer, self.parser = BatchWriter(sock, stall_timeout=30), HttpRequestParser(self)
        self.target, self.fields = b"", list[tuple[bytes, bytes]]()
        self.exchanges: list[Exchange] = []  # the first is in progress
        self.incoming: Exchange | None = None  # whose request is not complete
        self.reading, self.unparsed = asyncio.Lock(), 0
        self.eof = self.malformed = False  # eof: nothing more is parsed

    async def run(self, app: App) -> None:
        """Answer one request after the other; reset the connection if a response is incomplete."""
        try:
            async with self.writer:
                while self.exchanges or not self.eof:
                    if not self.exchanges:
                        await self.read()
                    elif await self.answer(app, self.exchanges[0]):
                        break
                else:
                    if self.malformed and not self.incoming:
                        put(self.writer, 400)
            await self.linger()
        except (OSError, asyncio.CancelledError):
            if self.exchanges:
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    async def answer(self, app: App, exchange: Exchange) -> bool:
        """Have the application answer a request; return whether the connection ends."""
        CALLS.add(call := asyncio.create_task(exchange.run(app)))
        call.add_done_callback(CALLS.discard)
        complete = await exchange.over
        if exchange.head == b"" and not complete:
            raise ConnectionAbortedError("the response is incomplete")
        if not complete:
            put(self.writer, 400 if self.malformed else 500)
        self.exchanges.pop(0)
        return exchange.last or not complete

    async def read(self) -> None:
        """Read and parse once."""
        if self.reading.locked():  # by a call that goes on after its response
            async with self.reading:
                pass
        else:
            data = b""
            async with self.reading:
                with suppress(OSError):  # a reset
                    data = await self.reader.read(16384)
            self.parse(data)

    def parse(self, data: bytes) -> None:
        """Parse a piece of the requests."""
        self.unparsed += len(data)
        try:
            self.parser.feed_data(data)
        except HttpParserUpgrade:
            pass  # the request is answered in HTTP/1.1, and is the last
        except HttpParserError:
            self.malformed = True
        self.malformed = self.malformed or self.unparsed > LIMIT
        self.eof = self.malformed or not data

    async def linger(self) -> None:
        """Drop what still arrives: closing the socket now would reset it (RFC 9112, 9.6)."""
        with suppress(OSError):  # also after LINGER seconds
            self.sock.shutdown(socket.SHUT_WR)
            async with asyncio.timeout(LINGER), self.reading:
                while await self.reader.read(16384):
                    pass

    def on_url(self, part: bytes) -> None:
        """Collect the target of a request."""
        self.target += part

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect a field of a head; drop those after a body."""
        if not self.incoming:
            self.fields.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Add an exchange."""
        url, headers, parser = parse_url(self.target), self.fields, self.parser
        self.target, self.fields = b"", []
        if parser.should_upgrade() and {b"content-length", b"transfer-encoding"} & {*dict(headers)}:
            raise HttpParserError  # httptools would skip the body
        path = url.path or b"/"
        scope = self.scope | {"headers": headers, "state": self.scope["state"].copy()}
        scope["http_version"] = "1.1" if parser.get_http_version() == "1.1" else "1.0"
        scope["method"] = parser.get_method().decode()
        scope["path"], scope["raw_path"] = unquote(path), path
        scope["query_string"] = url.query or b""
        last = parser.should_upgrade() or not parser.should_keep_alive()
        self.incoming = Exchange(self, scope, last=last)
        self.exchanges.append(self.incoming)

    def on_body(self, part: bytes, *, more: bool = True) -> None:
        """Pass on a part of a request's body, unless the response is complete."""
        if len(self.exchanges) < 2:  # else the requests that wait count
            self.unparsed = 0
        if self.incoming and not self.incoming.over.done():
            self.incoming.events.append({"type": "http.request", "body": part, "more_body": more})

    def on_message_complete(self) -> None:
        """End the body of a request."""
        self.on_body(b"", more=False)
        self.incoming = None


async def serve(app: App, port: int) -> None:
    """Serve until SIGINT or SIGTERM."""
    base: Message = {"asgi": {"version": "3.0", "spec_version": "2.5"}, "state": {}}
    extensions: Message = {"http.response.pathsend": {}, "http.response.zerocopysend": {}}
    scope = base | {"type": "http", "scheme": "http", "root_path": "", "extensions": extensions}
    connections: dict[Connection, Any] = {}  # and their tasks

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError), closing(writer), writer.get_extra_info("socket").dup() as sock:
            addresses = {"client": sock.getpeername(), "server": sock.getsockname()}
            connection = Connection(scope | addresses, reader, sock)
            connections[connection] = asyncio.current_task()
            await connection.run(app)
            del connections[connection]

    async with lifespan(app, base | {"type": "lifespan"}):
        stopped = stop_event()
        server = await asyncio.start_server(connected, "127.0.0.1", port)
        print(f"listening on http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
        await stopped.wait()
        server.close()
        await stop(connections)


def stop_event() -> asyncio.Event:
    """Return an event that SIGINT and SIGTERM set. A second signal ends the program at once."""
    loop, event = asyncio.get_running_loop(), asyncio.Event()

    def handle(number: signal.Signals) -> None:
        loop.remove_signal_handler(number)
        event.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, handle, number)
    return event


async def stop(connections: dict[Connection, Any]) -> None:
    """Complete the exchanges and calls that are in progress, or cancel them after GRACE seconds."""
    for connection, task in connections.items():
        if connection.exchanges:
            connection.exchanges[-1].last = True
        else:
            task.cancel()
    tasks = asyncio.gather(*connections.values(), *CALLS, return_exceptions=True)
    with suppress(TimeoutError):
        await asyncio.wait_for(tasks, GRACE)


if __name__ == "__main__":
    sys.path.insert(0, "")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("app", type=resolve_name, metavar="MODULE:APP")
    parser.add_argument("--port", type=int, default=8000)
    with suppress(KeyboardInterrupt):
        asyncio.run(serve(**vars(parser.parse_args())))
