"""The Python methods to send a response, each as its users would write it.

`python -m tests.bench.senders METHOD` does the jobs on its standard input, in the protocol that
senders.c describes. A method imports its package and starts its loop before the clock starts.

All sockets are non-blocking, except for socket.sendfile, which requires a blocking socket. Every
method waits for room in the socket by its package's own means, and buffers at most about CHUNK
bytes. A method whose package can't send files reads them by pread, CHUNK bytes at a time, and sends
the first piece with the header.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
import struct
import sys
from functools import partial
from importlib import import_module
from itertools import chain, repeat
from pathlib import Path
from time import process_time
from typing import TYPE_CHECKING, Any

from iobatch import IOBatch, iob_send
from iobatch.aio import BatchWriter
from tests.bench.jobs import CHUNK, Job

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

GATHER_CHUNK = 256 * 1024
# Up to this size pread is cheaper than sendfile, for a single response.
COPY_LIMIT = 32 * 1024
MORE = int(socket.MSG_MORE)


def room_waiter(sock: socket.socket) -> Callable[[], object]:
    """Return a function that waits until the socket is writable."""
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    return poll.poll


def iobatch(job: Job, *, at_once: bool = False) -> float:
    """Send by iob_send; at_once: add all buffers by one addbufs()."""
    job.sock.setblocking(False)
    sock, fd, parts, lone = job.sock, job.file.fileno(), job.parts, job.lone
    batch, wait = IOBatch(), room_waiter(sock)
    start = job.start()
    for _ in range(job.rounds):
        if lone:
            batch.addbuf(lone)
        elif at_once:
            batch.addbufs(job.buffers)
        else:
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
    """Send without a library: small responses in one send, large ranges by sendfile."""
    job.sock.setblocking(False)
    send, sock_fd, fd, wait = (
        job.sock.send,
        job.sock.fileno(),
        job.file.fileno(),
        room_waiter(job.sock),
    )

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
                sent = os.sendfile(sock_fd, fd, offset, count)
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
            try:
                sent = send(lone)
            except BlockingIOError:
                wait()
                sent = 0
            if sent < len(lone):
                send_all(lone[sent:])
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
    """A protocol with nothing but flow control."""

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


def loop_factory(package: str) -> Callable[[], asyncio.AbstractEventLoop]:
    """Return the function that makes loops: of asyncio, uvloop, or asyncio with aiofastnet."""
    module: Any = import_module(package)
    return module.loop_factory() if package == "aiofastnet" else module.new_event_loop


def on_loop(send: Callable[..., Coroutine[Any, Any, float]], package: str, job: Job) -> float:
    """Run a coroutine function on a loop of a package."""
    with asyncio.Runner(loop_factory=loop_factory(package)) as runner:
        return runner.run(send(job))


def _chunk(transport: asyncio.BaseTransport) -> int:
    """Return the piece size for a transport; asyncio's are those that join."""
    return CHUNK if type(transport).__module__.startswith("asyncio.") else GATHER_CHUNK


async def _transport(job: Job) -> float:
    transport, flow = await asyncio.get_running_loop().create_connection(Flow, sock=job.sock)
    lone, steps = job.lone, job.steps(_chunk(transport))
    start = job.start()
    for _ in range(job.rounds):
        if lone:
            transport.write(lone)
            if flow.full:
                await flow.room.wait()
        else:
            for step in steps:
                transport.writelines(job.load(step))
                if flow.full:
                    await flow.room.wait()
    seconds = process_time() - start
    transport.close()
    await flow.lost.wait()
    return seconds


async def _loop_sendfile(job: Job) -> float:
    loop = asyncio.get_running_loop()
    transport, flow = await loop.create_connection(Flow, sock=job.sock)
    start = job.start()
    for _ in range(job.rounds):
        for head, offset, count in job.parts:
            transport.write(head)
            if count:
                await loop.sendfile(transport, job.file, offset, count)
    seconds = process_time() - start
    transport.close()
    await flow.lost.wait()
    return seconds


async def _stream(job: Job) -> float:
    _, writer = await asyncio.open_connection(sock=job.sock)
    steps = job.steps(_chunk(writer.transport))
    start = job.start()
    for _ in range(job.rounds):
        for step in steps:
            writer.writelines(job.load(step))
            await writer.drain()
    seconds = process_time() - start
    writer.close()
    await writer.wait_closed()
    return seconds


async def _batch_writer(job: Job) -> float:
    fd, parts = job.file.fileno(), job.parts
    batch = IOBatch()
    job.sock.setblocking(False)
    async with BatchWriter(job.sock) as writer:
        start = job.start()
        for _ in range(job.rounds):
            for head, offset, count in parts:
                batch.addbuf(head)
                if count:
                    batch.addfile(fd, offset, count)
            await writer.write(batch)
        return process_time() - start


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
    from tornado.iostream import IOStream  # noqa: PLC0415  # optional

    async def main() -> float:
        stream = IOStream(job.sock)
        seconds = await _awaited(job, stream.write)
        stream.close()
        return seconds

    job.sock.setblocking(False)
    return asyncio.run(main())


def trio(job: Job) -> float:
    from trio import SocketStream, run  # noqa: PLC0415  # optional
    from trio.socket import from_stdlib_socket  # noqa: PLC0415  # optional

    async def main() -> float:
        return await _awaited(job, SocketStream(from_stdlib_socket(job.sock)).send_all)

    return run(main)


def twisted(job: Job) -> float:
    """Write a step whenever the transport's buffer is empty, as twisted's FileSender does."""
    from twisted.internet.epollreactor import EPollReactor  # noqa: PLC0415  # optional
    from twisted.internet.protocol import Factory, Protocol  # noqa: PLC0415  # optional

    lone, steps = job.lone, job.steps()
    todo = chain.from_iterable(repeat(steps, job.rounds))
    reactor = EPollReactor()  # a new one for each job: a stopped reactor can't be restarted
    times = []

    class Producer(Protocol):
        def connectionMade(self) -> None:  # noqa: N802  # twisted's name
            times.append(job.start())
            self.transport.registerProducer(self, streaming=False)

        def resumeProducing(self) -> None:  # noqa: N802  # twisted's name
            step = next(todo, None)
            if step is None:
                times.append(process_time())
                # Don't close the transport: that would shut the connection down.
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
    from gevent.socket import socket as gevent_socket  # noqa: PLC0415  # optional

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


# The methods of iobatch.
OURS: dict[str, Callable[[Job], float]] = {
    "iobatch": iobatch,
    "iobatch, addbufs": partial(iobatch, at_once=True),
    "BatchWriter.write": partial(on_loop, _batch_writer, "asyncio"),
}
METHODS: dict[str, Callable[[Job], float]] = {
    **OURS,
    "Python by hand": by_hand,
    "socket.sendfile": socket_sendfile,
    "asyncio": partial(on_loop, _transport, "asyncio"),
    "asyncio, sendfile": partial(on_loop, _loop_sendfile, "asyncio"),
    "uvloop": partial(on_loop, _transport, "uvloop"),
    "aiofastnet": partial(on_loop, _transport, "aiofastnet"),
    "asyncio, drain": partial(on_loop, _stream, "asyncio"),
    "uvloop, drain": partial(on_loop, _stream, "uvloop"),
    "aiofastnet, drain": partial(on_loop, _stream, "aiofastnet"),
    "tornado": tornado,
    "trio": trio,
    "twisted": twisted,
    "gevent": gevent,
}


def perform(method: Callable[[Job], float], line: str) -> str:
    """Do a job, and return the answer; senders.c describes both lines."""
    port, nodelay, rounds, path, *numbers = line.split()
    sizes = [int(number) for number in numbers]
    parts = [
        (b"h" * head, offset, count) for head, offset, count in zip(*[iter(sizes)] * 3, strict=True)
    ]
    with socket.socket() as sock, Path(path).open("rb", buffering=0) as file:
        # Set before connect(): a connection that BBR has paced once stays paced.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")
        sock.connect(("127.0.0.1", int(port)))
        with sock.dup() as given:  # the method may close its socket
            seconds = method(Job(given, file, nodelay == "1", int(rounds), parts))
        sock.setblocking(True)
        sock.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(partial(sock.recv, 100), b"")).decode()
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 160)
        (segments,) = struct.unpack_from("I", info, 156)  # tcpi_data_segs_out
    return f"{seconds * 1e6 / int(rounds):.3f} {segments} {answer}"


def main() -> None:
    """Do the jobs on standard input."""
    method: Any = METHODS[sys.argv[1]]
    for line in sys.stdin:
        print(perform(method, line), flush=True)


if __name__ == "__main__":
    main()
