"""Serve one file over HTTP, on trio: `python trio_server.py FILE [PORT]`."""

import os
import socket
import sys

import trio

from iobatch import IOB_AGAIN, IOB_ERROR, IOBatch, iob_send


async def send(sock: socket.socket, batch: IOBatch) -> None:
    """Send a whole batch; after a cancellation it holds the bytes that are not sent."""
    while nbytes := iob_send(sock, batch):
        if nbytes == IOB_ERROR and batch.error:
            raise batch.error
        if nbytes == IOB_AGAIN:
            await trio.lowlevel.wait_writable(sock)
        else:
            await trio.lowlevel.checkpoint()  # let other tasks run, however fast the reader is


async def answer(sock: socket.socket, fd: int) -> None:
    """Answer the requests of one connection until the client closes it or is too slow."""
    unread = b""
    with sock, IOBatch() as batch:
        try:
            while len(unread) < 16384:
                await trio.lowlevel.wait_readable(sock)
                if not (piece := sock.recv(16384)):
                    break
                *requests, unread = (unread + piece).split(b"\r\n\r\n")
                for _ in requests:
                    size = os.fstat(fd).st_size
                    batch.adds(f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n")
                    batch.addfile(fd, 0, size)
                    with trio.fail_after(600):
                        await send(sock, batch)
        except (OSError, trio.TooSlowError) as exc:
            print(f"connection lost: {exc}", file=sys.stderr)


async def main(fd: int, port: int) -> None:
    """Serve until interrupted."""
    with socket.create_server(("127.0.0.1", port)) as listener:
        listener.setblocking(False)
        print(f"listening on {listener.getsockname()}", flush=True)
        async with trio.open_nursery() as nursery:
            while True:
                await trio.lowlevel.wait_readable(listener)
                sock, _ = listener.accept()
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                nursery.start_soon(answer, sock, fd)


if __name__ == "__main__":
    trio.run(main, os.open(sys.argv[1], os.O_RDONLY), int([*sys.argv, "8000"][2]))
