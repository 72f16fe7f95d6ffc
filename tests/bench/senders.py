"""The ways of Python to send a response, each as its users would write it.

Run as `python -m tests.bench.senders WAY` it does what senders.c does, which says how it is told
what to send and what it answers. A way's package is imported, and its loop started, before the
clock is.

All sockets are non-blocking, but socket.sendfile's, which wants them blocking. Every way waits
until there is room, as its package provides it: none holds more than about CHUNK bytes back. What
has no way of its own for files gets them by pread, CHUNK at a time, behind the header.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
import struct
import sys
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from time import process_time
from typing import TYPE_CHECKING, Any

from attrs import frozen

from iobatch import IOBatch, iob_send

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from typing import BinaryIO

    Part = tuple[bytes, int, int]  # a buffer, and offset and count of what follows it of the file

# The best of those from 32 KiB to 1 MiB that were tried: from 128 KiB on malloc maps new pages for
# each piece, and what joins pieces takes up to four times as long. uvloop doesn't join.
CHUNK = 120 * 1024
UVLOOP_CHUNK = 256 * 1024
# Up to here pread is cheaper than sendfile, for a response of its own.
COPY_LIMIT = 32 * 1024
MORE = int(socket.MSG_MORE)


@frozen
class Job:
    """What to send, and how often."""

    sock: socket.socket
    file: BinaryIO
    nodelay: bool
    rounds: int
    parts: Sequence[Part]

    @property
    def lone(self) -> bytes | None:
        """The one buffer, if that is all."""
        ((head, _, count), *more) = self.parts
        return None if count or more else head

    def steps(self, chunk: int = CHUNK) -> list[Sequence[Part]]:
        """Divide the parts into what to read and write at a time."""
        if sum(count for _, _, count in self.parts) <= chunk:
            return [self.parts]
        return [
            [(b"" if at > offset else head, at, min(chunk, offset + count - at))]
            for head, offset, count in self.parts
            for at in range(offset, offset + count, chunk)
        ]

    def load(self, step: Sequence[Part]) -> list[bytes]:
        """Read a step."""
        fd = self.file.fileno()
        pieces = []
        for head, offset, count in step:
            pieces.append(head)
            if count:
                pieces.append(os.pread(fd, count, offset))
        return pieces

    def start(self) -> float:
        """Undo what a package thinks of Nagle's algorithm; return the CPU time so far."""
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, self.nodelay)
        return process_time()


def waiting(sock: socket.socket) -> Callable[[], object]:
    """Return what waits until there is room."""
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    return poll.poll


def iobatch(job: Job) -> float:
    job.sock.setblocking(False)
    sock, fd, parts = job.sock, job.file.fileno(), job.parts
    batch, wait = IOBatch(), waiting(sock)
    start = job.start()
    for _ in range(job.rounds):
        for head, offset, count in parts:
            batch.addbuf(head)
            if count:
                batch.addfile(fd, offset, count)
        while sent := iob_send(sock, batch):
            if sent < 0:
                if batch.error:
                    raise batch.error
                wait()
    return process_time() - start


def by_hand(job: Job) -> float:
    """Do without a library: what is small in one send, what is not by sendfile."""
    job.sock.setblocking(False)
    send, to, fd, wait = job.sock.send, job.sock.fileno(), job.file.fileno(), waiting(job.sock)

    def send_all(data: bytes, flags: int = 0) -> None:
        sent = 0
        while sent < len(data):
            try:
                sent += send(memoryview(data)[sent:] if sent else data, flags)
            except BlockingIOError:
                wait()

    def send_file(offset: int, count: int) -> None:
        while count:
            try:
                sent = os.sendfile(to, fd, offset, count)
            except BlockingIOError:
                wait()
            else:
                offset += sent
                count -= sent

    lone = job.lone
    small = all(count <= COPY_LIMIT for _, _, count in job.parts)
    start = job.start()
    for _ in range(job.rounds):
        if lone:
            send_all(lone)
        elif small:
            send_all(b"".join(job.load(job.parts)))
        else:
            for head, offset, count in job.parts:
                send_all(head, MORE)
                send_file(offset, count)
    return process_time() - start


def socket_sendfile(job: Job) -> float:
    sock, file = job.sock, job.file
    start = job.start()
    for _ in range(job.rounds):
        for head, offset, count in job.parts:
            sock.sendall(head)
            if count:
                sock.sendfile(file, offset, count)
    return process_time() - start


class Flow(asyncio.Protocol):
    """The flow control that asyncio asks of a protocol."""

    def __init__(self) -> None:
        self.lost = asyncio.Event()
        self.room = asyncio.Event()
        self.room.set()

    def pause_writing(self) -> None:
        self.full = True
        self.room.clear()

    def resume_writing(self) -> None:
        self.full = False
        self.room.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set()

    full = False


async def _transport(job: Job, *, sendfile: bool = False, chunk: int = CHUNK) -> float:
    loop = asyncio.get_running_loop()
    transport, flow = await loop.create_connection(Flow, sock=job.sock)
    lone, steps = job.lone, job.steps(chunk)
    start = job.start()
    if lone:
        for _ in range(job.rounds):
            transport.write(lone)
            if flow.full:
                await flow.room.wait()
    elif sendfile:
        for _ in range(job.rounds):
            for head, offset, count in job.parts:
                transport.write(head)
                if count:
                    await loop.sendfile(transport, job.file, offset, count)
    else:
        for _ in range(job.rounds):
            for step in steps:
                transport.writelines(job.load(step))
                if flow.full:
                    await flow.room.wait()
    seconds = process_time() - start
    transport.close()
    await flow.lost.wait()
    return seconds


def asyncio_writelines(job: Job) -> float:
    return asyncio.run(_transport(job))


def asyncio_sendfile(job: Job) -> float:
    return asyncio.run(_transport(job, sendfile=True))


def uvloop(job: Job) -> float:
    from uvloop import new_event_loop  # noqa: PLC0415

    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(_transport(job, chunk=UVLOOP_CHUNK))


async def _awaited(job: Job, write: Callable[[bytes], Awaitable[None]]) -> float:
    lone, steps = job.lone, job.steps()
    start = job.start()
    for _ in range(job.rounds):
        if lone:
            await write(lone)
        else:
            for step in steps:
                await write(b"".join(job.load(step)))
    return process_time() - start


def tornado(job: Job) -> float:
    from tornado.iostream import IOStream  # noqa: PLC0415

    async def main() -> float:
        stream = IOStream(job.sock)
        seconds = await _awaited(job, stream.write)
        stream.close()
        return seconds

    job.sock.setblocking(False)
    return asyncio.run(main())


def trio(job: Job) -> float:
    from trio import SocketStream, run  # noqa: PLC0415
    from trio.socket import from_stdlib_socket  # noqa: PLC0415

    async def main() -> float:
        return await _awaited(job, SocketStream(from_stdlib_socket(job.sock)).send_all)

    return run(main)


def twisted(job: Job) -> float:
    """Write a step whenever the transport has none left, as twisted's own FileSender does."""
    from twisted.internet.epollreactor import EPollReactor  # noqa: PLC0415
    from twisted.internet.protocol import Factory, Protocol  # noqa: PLC0415

    lone, steps = job.lone, job.steps()
    todo = chain.from_iterable(repeat(steps, job.rounds))
    reactor = EPollReactor()  # one that has stopped can't start again
    times = []

    class Producer(Protocol):
        def connectionMade(self) -> None:  # noqa: N802
            times.append(job.start())
            self.transport.registerProducer(self, streaming=False)

        def resumeProducing(self) -> None:  # noqa: N802
            step = next(todo, None)
            if step is None:
                times.append(process_time())
                # To close it would shut the connection down.
                self.transport.stopReading()
                reactor.stop()
            elif lone:
                self.transport.write(lone)
            else:
                self.transport.writeSequence(job.load(step))

    job.sock.setblocking(False)
    reactor.adoptStreamConnection(job.sock.fileno(), socket.AF_INET, Factory.forProtocol(Producer))
    reactor.run(installSignalHandlers=False)
    start, end = times
    return end - start


def gevent(job: Job) -> float:
    from gevent.socket import socket as gevent_socket  # noqa: PLC0415

    lone, steps = job.lone, job.steps()
    with gevent_socket(fileno=os.dup(job.sock.fileno())) as sock:
        start = job.start()
        for _ in range(job.rounds):
            if lone:
                sock.sendall(lone)
            else:
                for step in steps:
                    sock.sendall(b"".join(job.load(step)))
        return process_time() - start


WAYS: dict[str, Callable[[Job], float]] = {
    "iobatch": iobatch,
    "Python by hand": by_hand,
    "socket.sendfile": socket_sendfile,
    "asyncio": asyncio_writelines,
    "asyncio, sendfile": asyncio_sendfile,
    "uvloop": uvloop,
    "tornado": tornado,
    "trio": trio,
    "twisted": twisted,
    "gevent": gevent,
}


def perform(way: Callable[[Job], float], line: str) -> str:
    """Do a job; senders.c says what the words are."""
    port, nodelay, rounds, path, *numbers = line.split()
    sizes = [int(number) for number in numbers]
    parts = [
        (b"h" * head, offset, count) for head, offset, count in zip(*[iter(sizes)] * 3, strict=True)
    ]
    with socket.socket() as sock, Path(path).open("rb", buffering=0) as file:
        # Before it connects: what has once been paced by BBR keeps being paced.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")
        sock.connect(("127.0.0.1", int(port)))
        with sock.dup() as given:  # a way may close it
            seconds = way(Job(given, file, nodelay == "1", int(rounds), parts))
        sock.setblocking(True)
        sock.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(partial(sock.recv, 100), b"")).decode()
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 160)
        (segments,) = struct.unpack_from("I", info, 156)  # tcpi_data_segs_out
    return f"{seconds * 1e6 / int(rounds):.3f} {segments} {answer}"


def main() -> None:
    """Do the jobs that standard input has."""
    way: Any = WAYS[sys.argv[1]]
    for line in sys.stdin:
        print(perform(way, line), flush=True)


if __name__ == "__main__":
    main()
