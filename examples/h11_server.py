"""Serve a directory or a file over HTTP, each connection in a thread. It needs h11.

h11 frames a body without reading it. The body is a batch here, so sendfile sends what h11 frames.
"""

import argparse
import os
import socket
import sys
from email.utils import formatdate
from errno import EMFILE
from pathlib import Path
from threading import Thread
from time import monotonic, sleep
from typing import cast
from urllib.parse import unquote_to_bytes

import h11

from iobatch import IOBatch, iob_sendall


class Body(IOBatch):
    """The body of a response. h11 asks only for its length."""

    def __len__(self) -> int:
        return self.bytesleft


def serve(sock: socket.socket, root: Path) -> None:
    """Answer requests until the client ends its stream, is too slow, or makes an error."""
    http, request, status, deadline = h11.Connection(h11.SERVER), None, 0, monotonic() + 60
    with sock:
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while http.our_state is not h11.MUST_CLOSE and monotonic() < deadline:
                try:
                    event = http.next_event()
                except h11.RemoteProtocolError as exc:
                    event, status = h11.EndOfMessage(), exc.error_status_hint
                if isinstance(event, h11.Request):
                    request, status = event, (200 if event.method in {b"GET", b"HEAD"} else 405)
                elif isinstance(event, h11.EndOfMessage):
                    with respond(http, root, request, status) as batch:
                        iob_sendall(sock, batch, timeout=60 + batch.bytesleft / 100_000)
                    deadline = monotonic() + 60
                elif event is h11.PAUSED:
                    http.start_next_cycle()
                elif event is h11.NEED_DATA:
                    if http.they_are_waiting_for_100_continue:
                        interim = h11.InformationalResponse(status_code=100, headers=[])
                        sock.sendall(http.send(interim))
                    sock.settimeout(max(deadline - monotonic(), 0.001))
                    http.receive_data(sock.recv(65536))
            sock.shutdown(socket.SHUT_WR)
            while monotonic() < deadline and sock.recv(65536):
                pass  # to close with unread bytes would destroy the last response
        except OSError as exc:
            sys.stderr.write(f"connection lost: {exc}\n")  # print() would write twice


def respond(http: h11.Connection, root: Path, request: h11.Request | None, status: int) -> IOBatch:
    """Return a response: with the status 200 it is the file that the request is for."""
    body, batch = Body(), IOBatch()
    if request and status == 200:
        try:
            file = root / os.fsdecode(unquote_to_bytes(request.target.split(b"?")[0])).lstrip("/")
            file = (file / "index.html" if file.is_dir() else file).resolve()
            file.relative_to(root)  # raises ValueError outside
            body.addfile(file)  # raises for all except regular files
        except (OSError, ValueError, RuntimeError) as exc:  # RuntimeError: a loop of links
            status = 503 if getattr(exc, "errno", None) == EMFILE else 404
    length = ("Content-Length", str(len(body)))
    close = [("Connection", "close")] if http.their_state is h11.ERROR else []
    headers = [("Date", formatdate(usegmt=True)), ("Allow", "GET, HEAD"), length, *close]
    if request and request.method == b"HEAD":
        body.reset()
    response = h11.Response(status_code=status, headers=headers)
    for event in (response, h11.Data(data=cast("bytes", body)), h11.EndOfMessage()):
        for piece in http.send_with_data_passthrough(event) or ():
            if isinstance(piece, Body):
                batch.extend(piece)
            else:
                batch.addbuf(piece)
    return batch


def main(path: str, port: int) -> None:
    """Serve each client in a thread, until interrupted."""
    root = Path(path).resolve()
    with socket.create_server(("127.0.0.1", port)) as listener:
        print(f"listening on http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        while True:
            try:
                Thread(target=serve, args=(listener.accept()[0], root), daemon=True).start()
            except (OSError, RuntimeError):  # no descriptor or no thread, or the client is gone
                sleep(0.1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", metavar="PATH")
    parser.add_argument("port", metavar="PORT", nargs="?", type=int, default=8000)
    main(**vars(parser.parse_args()))
