"""Serve the files of a directory over HTTP.

A connection reads requests, adds a response for each of them to its batch, and sends the batch
whenever its socket is writable. What it leaves out is in `iobatch.httpd`: limits and timeouts, a
lingering close, all forms of targets, ranges, TLS. It needs httptools.
"""

import argparse
import os
import socket
from contextlib import suppress
from email.utils import formatdate
from http import HTTPStatus
from mimetypes import guess_type
from pathlib import Path
from selectors import EVENT_READ, EVENT_WRITE, DefaultSelector
from urllib.parse import unquote_to_bytes

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser

from iobatch import IOBatch, iob_send


class Connection:
    """A client's connection. The parser calls on_url and on_message_complete."""

    def __init__(self, sock: socket.socket, root: Path) -> None:
        """Wait for the first request."""
        self.sock, self.root = sock, root
        self.batch = IOBatch()
        self.parser = HttpRequestParser(self)
        self.target, self.ended = b"", False  # when it has ended, no request is answered any more

    def step(self) -> int:
        """Read or send what is possible; return the events to wait for, or 0 at the end."""
        if not self.batch:  # a client must read its responses before it gets more of them
            self.receive()
        iob_send(self.sock, self.batch)
        if self.batch.error or (self.ended and not self.batch):
            return 0
        return EVENT_WRITE if self.batch else EVENT_READ

    def receive(self) -> None:
        """Read requests, and add their responses to the batch."""
        try:
            self.parser.feed_data(data := self.sock.recv(4096))
            self.ended = self.ended or not data
        except OSError as exc:
            self.ended = not isinstance(exc, BlockingIOError)
        except (HttpParserError, HttpParserUpgrade):
            if not self.ended:
                self.ended = True
                self.respond(HTTPStatus.BAD_REQUEST)

    def on_url(self, part: bytes) -> None:
        """Collect the target of a request, up to a length that no path has."""
        self.target = (self.target + part)[:16384]

    def on_message_complete(self) -> None:
        """Answer a request."""
        path, self.target = os.fsdecode(unquote_to_bytes(self.target.partition(b"?")[0])), b""
        if self.ended:
            return
        self.ended = self.parser.should_upgrade() or not self.parser.should_keep_alive()
        if self.parser.get_method() in {b"GET", b"HEAD"}:
            self.respond_file(path)
        else:
            self.respond(HTTPStatus.METHOD_NOT_ALLOWED)

    def respond_file(self, path: str) -> None:
        """Add a response with a file, which the batch closes as soon as it is sent."""
        try:
            file = self.root / path.lstrip("/")
            file = (file / "index.html" if file.is_dir() else file).resolve()
            if not file.is_relative_to(self.root) or not file.is_file():
                raise FileNotFoundError(path)
            fd = os.open(file, os.O_RDONLY)
        except (OSError, ValueError, RuntimeError):  # a null byte; a loop of links
            self.respond(HTTPStatus.NOT_FOUND)
        else:
            size = os.fstat(fd).st_size
            kind, coding = guess_type(file)
            self.respond(HTTPStatus.OK, size, None if coding else kind)
            self.batch.addfile_close(fd, 0, size if self.parser.get_method() == b"GET" else 0)

    def respond(self, status: HTTPStatus, size: int = 0, kind: str | None = "text/plain") -> None:
        """Add the head of a response."""
        self.batch.adds(
            f"HTTP/1.1 {status} {status.phrase}\r\nDate: {formatdate(usegmt=True)}\r\n"
            f"Content-Type: {kind or 'application/octet-stream'}\r\n"
            f"Content-Length: {size}\r\nAllow: GET, HEAD\r\n"
            f"Connection: {'close' if self.ended else 'keep-alive'}\r\n\r\n"
        )


def main(directory: str, port: int) -> None:
    """Serve forever."""
    selector = DefaultSelector()
    listener = socket.create_server(("127.0.0.1", port))
    selector.register(listener, EVENT_READ)
    print(f"listening on http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    while True:
        for key, _ in selector.select():
            if key.data is None:
                with suppress(OSError):  # the client is gone, or no descriptor is free
                    sock, _ = listener.accept()
                    sock.setblocking(False)
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    selector.register(sock, EVENT_READ, Connection(sock, Path(directory).resolve()))
            elif events := key.data.step():
                selector.modify(key.fileobj, events, key.data)
            else:
                selector.unregister(key.fileobj)
                key.data.batch.reset()
                key.data.sock.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", metavar="DIRECTORY")
    parser.add_argument("port", metavar="PORT", nargs="?", type=int, default=8000)
    main(**vars(parser.parse_args()))
