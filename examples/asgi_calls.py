"""The calls of an ASGI application by asgi_server.py: for its lifespan, and for each request.

The head of a response and the first part of its body are one batch. So a small response is one
system call, and a file (http.response.pathsend, http.response.zerocopysend) goes by sendfile, also
as a chunk. `send` waits until its batch has left, and so for a client that does not read.
"""

import asyncio
import os
import sys
import traceback
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from email.utils import formatdate
from functools import lru_cache
from http.client import responses
from time import time
from typing import TYPE_CHECKING, Any

from iobatch import IOBatch
from iobatch.aio import BatchWriter

if TYPE_CHECKING:
    from asgi_server import Connection

Message = dict[str, Any]
App = Callable[..., Awaitable[None]]

FRAMING = {b"connection", b"content-length", b"transfer-encoding"}  # fields that the server writes
LAST = "Content-Length: 0\r\nConnection: close\r\n"


@lru_cache(1)
def date_field(now: int) -> bytes:
    """Return the Date field, which changes once a second."""
    return f"Date: {formatdate(now, usegmt=True)}".encode()


def put(writer: BatchWriter, status: int, fields: str = LAST) -> None:
    """Send a head that is not the application's."""
    with IOBatch() as batch:
        batch.adds(f"HTTP/1.1 {status} {responses[status]}\r\n{fields}\r\n")
        writer.write(batch)


@asynccontextmanager
async def lifespan(app: App, scope: Message) -> AsyncGenerator[None, None]:
    """Have the application start up, and shut down at the end; exit if it can't."""
    inbox, outbox = asyncio.Queue[Message](), asyncio.Queue[Message]()

    async def call() -> None:
        with suppress(Exception):  # an application without a lifespan raises one
            await app(scope, inbox.get, outbox.put)
        for _ in range(2):
            outbox.put_nowait({"type": "ended"})  # in place of the replies that it has not sent

    async def step(name: str) -> None:
        inbox.put_nowait({"type": f"lifespan.{name}"})
        reply = await outbox.get()
        if reply["type"] == f"lifespan.{name}.failed":
            sys.exit(f"{name} failed: {reply.get('message', '')}")

    task = asyncio.create_task(call())
    try:
        await step("startup")
        yield
        await step("shutdown")
    finally:
        task.cancel()


class Exchange:
    """A request and its response: what one call of the application receives and sends."""

    def __init__(self, connection: "Connection", scope: Message, *, last: bool) -> None:
        """Begin when the head of the request has arrived."""
        self.connection, self.scope, self.last = connection, scope, last
        # Whether the client may be waiting for 100 before it sends the request's body.
        expects = (b"expect", b"100-continue") in scope["headers"]
        self.withheld = expects and scope["http_version"] == "1.1"
        self.events: deque[Message] = deque()  # for the application to receive
        self.head: bytes | None = None  # of the response, from its start on; empty: it is sent
        self.remaining: int | None = None  # bytes of the response's Content-Length
        self.bodiless = self.chunked = False
        self.final = False  # whether the last part of the response is posted
        # At the end: whether the response is complete.
        self.over: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    async def run(self, app: App) -> None:
        """Call the application, and report its faults."""
        try:
            await app(self.scope, self.receive, self.send)
            if not self.final:
                raise RuntimeError("the application has not completed its response")
        except BaseException as exc:  # noqa: BLE001 # whatever it is, the server goes on
            if isinstance(exc.__context__ or exc, OSError | asyncio.CancelledError):
                print(f"call ended: {exc!r}", file=sys.stderr)  # in general: the client has left
            else:
                traceback.print_exception(exc)
        if not self.over.done():
            self.over.set_result(False)

    async def receive(self) -> Message:
        """Return the next part of the request's body; after the last, wait for the end."""
        if self.withheld and self.head != b"":
            self.withheld = False
            if not self.events:
                put(self.connection.writer, 100, "")
        while not (self.events or self.over.done() or self.connection.eof):
            await self.connection.read()
        return self.events.popleft() if self.events else {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Take the start of the response, or send a part of it and wait until it has left."""
        more = message.get("more_body", False)
        if self.final:
            return  # the specification has further messages ignored
        with IOBatch() as batch:
            match message["type"]:
                case "http.response.start" if self.head is None:
                    self.begin(message["status"], message.get("headers", ()))
                case "http.response.body" if self.head is not None:
                    batch.addbuf(message.get("body", b""))
                    await self.post(batch, more=more)
                case "http.response.zerocopysend" if self.head is not None:
                    file, offset = message["file"], message.get("offset")
                    start = file.tell() if offset is None else offset
                    batch.addfile(file.fileno(), start, message.get("count"))
                    if offset is None:
                        file.seek(start + batch.bytesleft)  # as os.sendfile does
                    await self.post(batch, more=more)
                case "http.response.pathsend" if self.head:
                    file = os.open(message["path"], os.O_RDONLY | os.O_NONBLOCK)  # it may be a FIFO
                    try:
                        batch.addfile(file, 0, self.remaining)
                        await self.post(batch, more=False)
                    finally:
                        os.close(file)
                case kind:
                    raise RuntimeError(f"{kind} is unknown, or out of place")

    def begin(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Make the head of the response, which tells where its body ends (RFC 9112, 6)."""
        fields = [(name.lower(), value) for name, value in headers]
        given, version = dict(fields), self.scope["http_version"]
        lines = [b"%b: %b" % field for field in fields if field[0] not in FRAMING]
        if b"date" not in given:
            lines.append(date_field(int(time())))
        self.bodiless = status in {204, 304} or self.scope["method"] == "HEAD"
        if b"content-length" in given and status != 204:
            length = int(given[b"content-length"])
            lines.append(b"Content-Length: %d" % length)
            self.remaining = None if self.bodiless else length
        elif version == "1.1" and not self.bodiless:
            lines.append(b"Transfer-Encoding: chunked")
            self.chunked = True
        elif not self.bodiless:
            self.last = True
        if self.last or self.withheld or b"close" in given.get(b"connection", b"").lower():
            lines.append(b"Connection: close")
            self.last = True
        elif version == "1.0":
            lines.append(b"Connection: keep-alive")
        lines.insert(0, f"HTTP/1.1 {status} {responses.get(status, '')}".encode())
        head = b"\r\n".join([*lines, b"", b""])
        if status < 200 or head.count(b"\r") + head.count(b"\n") != 2 * len(lines) + 2:
            raise ValueError("the status is not final, or a field has a line break")
        self.head = head

    async def post(self, batch: IOBatch, *, more: bool) -> None:
        """Send a part of the body in its frame, the first one after the head."""
        size = batch.bytesleft
        if self.bodiless:
            batch.reset()
        elif self.remaining is not None:
            self.remaining -= size
            if self.remaining < 0 or (self.remaining and not more):
                raise RuntimeError("the body is not as long as its Content-Length")
        elif self.chunked and size:
            batch.prepend(b"%x\r\n" % size)
            batch.adds("\r\n")
        if self.chunked and not more:
            batch.adds("0\r\n\r\n")
        batch.prepend(self.head or b"")
        operation = self.connection.writer.write(batch)
        self.head, self.final = b"", not more
        await operation
        if self.final and not self.over.done():
            self.over.set_result(True)
