"""Serve one file over HTTP, on trio."""

import argparse
import os
import sys
from functools import partial

import trio

from iobatch import IOBatch
from iobatch.anyio import send_batch


async def answer(fd: int, stream: trio.SocketStream) -> None:
    """Answer the requests of one connection until the client closes it or is too slow."""
    unread = b""
    async with stream:
        with IOBatch() as batch:
            try:
                while len(unread) < 16384:
                    with trio.fail_after(60):
                        if not (piece := await stream.receive_some()):
                            break
                    *requests, unread = (unread + piece).split(b"\r\n\r\n")
                    for _ in requests:
                        size = os.fstat(fd).st_size
                        batch.adds(f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n")
                        batch.addfile(fd, 0, size)
                        with trio.fail_after(600):
                            await send_batch(stream.socket, batch)
            except (OSError, trio.BrokenResourceError, trio.TooSlowError) as exc:
                print(f"connection lost: {exc!r}", file=sys.stderr)


async def main(fd: int, port: int) -> None:
    """Serve until interrupted."""
    async with trio.open_nursery() as nursery:
        serve = partial(trio.serve_tcp, partial(answer, fd), port, host="127.0.0.1")
        [listener] = await nursery.start(serve)
        print(f"listening on {listener.socket.getsockname()}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", metavar="FILE")
    parser.add_argument("port", metavar="PORT", nargs="?", type=int, default=8000)
    args = parser.parse_args()
    trio.run(main, os.open(args.file, os.O_RDONLY), args.port)
