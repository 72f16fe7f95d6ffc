"""Serve one file over HTTP, on asyncio."""

import argparse
import asyncio
import os
import socket
import sys

from iobatch import IOBatch
from iobatch.aio import BatchWriter


async def answer(sock: socket.socket, fd: int) -> None:
    """Answer the requests of one connection until the client closes it or stalls."""
    loop = asyncio.get_running_loop()
    batch = IOBatch()
    unread = b""
    with sock:
        try:
            async with BatchWriter(sock, stall_timeout=30) as writer:
                while len(unread) < 16384 and (piece := await loop.sock_recv(sock, 16384)):
                    *requests, unread = (unread + piece).split(b"\r\n\r\n")
                    for _ in requests:
                        size = os.fstat(fd).st_size
                        batch.adds(f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n")
                        batch.addfile(fd, 0, size)
                        await writer.write(batch)
        except OSError as exc:
            print(f"connection lost: {exc}", file=sys.stderr)


async def main(fd: int, port: int) -> None:
    """Serve until interrupted."""
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", port)) as listener:
        listener.setblocking(False)
        print(f"listening on {listener.getsockname()}", flush=True)
        async with asyncio.TaskGroup() as group:
            while True:
                try:
                    sock, _ = await loop.sock_accept(listener)
                except OSError:  # no descriptor is free, or the client has disconnected
                    await asyncio.sleep(0.1)
                    continue
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                group.create_task(answer(sock, fd))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", metavar="FILE")
    parser.add_argument("port", metavar="PORT", nargs="?", type=int, default=8000)
    args = parser.parse_args()
    asyncio.run(main(os.open(args.file, os.O_RDONLY), args.port))
