"""What a thousand slow peers cost, against a fast one.

One selectors loop sends to all of its connections: whenever a socket is writable, iob_send is
called once, and an empty batch is filled again. 1,000 peers with small receive buffers read 8 KiB
eight times a second each, evenly spread, in a process on the other processor. The fast peer drops
what comes (see reader.py); it gets by the same loop, alone, as many bytes as the slow ones together
can take in that time.

A byte costs more on its way to a slow peer, whoever sends it: a socket has room for a few KiB at a
time, so each call moves little, and epoll tells of each. The column "KiB in a call" shows that, and
so does the row "os.sendfile": the same loop around nothing but that call.

Memory is the sender's resident set: before there were connections, and the most in any turn of a
row. What the kernel holds in socket buffers is not in it.
"""

from __future__ import annotations

import os
import resource
import selectors
import socket
import tempfile
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from itertools import count
from pathlib import Path
from random import Random
from statistics import median
from time import monotonic, process_time, sleep
from typing import TYPE_CHECKING, Any

from attrs import frozen

from iobatch import IOB_ERROR, SEND_LIMIT, IOBatch, iob_send
from tests.bench.reader import READER, SENDER, beside, dropped, pin, tuned
from tests.bench.report import in_turn, ratios, spread, table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from tests.bench.report import Options

    # Sends to a socket what a peer's state says; returns how many bytes.
    Send = Callable[[socket.socket, Any], int]

KIB = 1024
MIB = 1024 * KIB
HEADER = b"h" * 200
PEERS = 1000
LARGE = 16 * MIB
BUFFER = 64 * KIB  # left to itself the kernel may take two MiB, enough for half a minute
READ = 8 * KIB  # what a slow peer reads at a time,
READS = 8  # so often in a second,
SLOTS = 25  # and not with all the others, but with a 25th of them.
SECONDS = 20  # for all turns of the slow peers together


# The reader


def read_slowly(socks: Sequence[socket.socket]) -> None:
    """Read from all of them at their pace."""
    pin(READER)
    slots = [socks[slot::SLOTS] for slot in range(SLOTS)]
    buffer = bytearray(READ)
    start = monotonic()
    for tick in count():
        sleep(max(0, start + tick / (READS * SLOTS) - monotonic()))
        for sock in slots[tick % SLOTS]:
            with suppress(BlockingIOError):
                sock.recv_into(buffer, READ, socket.MSG_TRUNC | socket.MSG_DONTWAIT)


@contextmanager
def slow_peers(number: int) -> Iterator[list[socket.socket]]:
    """Give connections to so many of them."""
    with ExitStack() as stack:
        senders, readers = [], []
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2 * READ)
            for _ in range(number):
                senders.append(stack.enter_context(tuned()))
                senders[-1].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
                senders[-1].connect(listener.getsockname())
                readers.append(listener.accept()[0])
        stack.enter_context(beside(read_slowly, readers))
        for sock in readers:
            sock.close()
        yield senders


# The ways to send. A state belongs to one connection.


def send_batch(fill: Callable[[IOBatch], None], sock: socket.socket, batch: IOBatch) -> int:
    """Send by iob_send, from a batch that is filled again and again."""
    if not batch:
        fill(batch)
    nbytes = iob_send(sock, batch)
    if nbytes == IOB_ERROR:
        raise batch.error or OSError
    return nbytes


def send_alone(fd: int, sock: socket.socket, offset: list[int]) -> int:
    """Send the large file by sendfile, again and again."""
    with suppress(BlockingIOError):
        nbytes = os.sendfile(sock.fileno(), fd, offset[0], min(LARGE - offset[0], SEND_LIMIT))
        offset[0] = (offset[0] + nbytes) % LARGE
        return nbytes
    return 0


def fill_from_file(fd: int, size: int, batch: IOBatch) -> None:
    """Add a header and a file."""
    batch.addbuf(HEADER)
    batch.addfile(fd, 0, size)


def fill_from_memory(body: bytes, batch: IOBatch) -> None:
    """Add a header and a body."""
    batch.addbuf(HEADER)
    batch.addbuf(body)


@frozen
class Turn:
    """What a turn took: CPU seconds, bytes, calls, and the resident set in bytes at its end."""

    cpu: float
    nbytes: int
    calls: int
    resident: int

    @property
    def cost(self) -> float:
        """CPU seconds for a byte."""
        return self.cpu / self.nbytes

    @property
    def moved(self) -> float:
        """KiB in a call."""
        return self.nbytes / self.calls / KIB


def resident() -> int:
    """Return this process's resident set in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def serve(send: Send, states: Mapping[socket.socket, Any], limit: float, seconds: float) -> Turn:
    """Send so many bytes, or for so long (but send something)."""
    nbytes = calls = 0
    with selectors.DefaultSelector() as selector:
        for sock, state in states.items():
            sock.setblocking(False)
            selector.register(sock, selectors.EVENT_WRITE, state)
        end = monotonic() + seconds
        start = process_time()
        while nbytes < limit and (monotonic() < end or not nbytes):
            for key, _ in selector.select(0.1):
                taken = send(key.fileobj, key.data)  # type: ignore[arg-type]
                if taken > 0:
                    nbytes += taken
                    calls += 1
        return Turn(process_time() - start, nbytes, calls, resident())


def run(options: Options) -> None:
    """Print the table."""
    pin(SENDER)
    number = 50 if options.smoke else PEERS
    body = Random(1).randbytes(LARGE)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # the usual 1024 are too few
    before = resident()
    with ExitStack() as stack:
        file = stack.enter_context(tempfile.TemporaryFile(buffering=0))
        file.write(body)
        fd = file.fileno()
        works: dict[str, tuple[Send, Callable[[], Any]]] = {
            "16 MiB files": (partial(send_batch, partial(fill_from_file, fd, LARGE)), IOBatch),
            "the same, os.sendfile": (partial(send_alone, fd), lambda: [0]),
            "16 KiB files": (partial(send_batch, partial(fill_from_file, fd, 16 * KIB)), IOBatch),
            "16 MiB buffers": (partial(send_batch, partial(fill_from_memory, body)), IOBatch),
        }
        slow = stack.enter_context(slow_peers(number))
        fast = stack.enter_context(dropped())
        seconds = (1 if options.smoke else SECONDS) / options.turns / len(works)
        limit = number * READ * READS * seconds
        ways = {}
        for name, (send, state) in works.items():
            for peers, socks in (("slow", slow), ("fast", [fast])):
                states = {sock: state() for sock in socks}
                ways[f"{name}, {peers}"] = partial(serve, send, states, limit, seconds)
        # The first thing that slow peers take is what fills the buffers.
        serve(works["16 MiB files"][0], {sock: IOBatch() for sock in slow}, float("inf"), 1)
        start = monotonic()
        results = in_turn(ways, options.turns)
        elapsed = monotonic() - start
    taken = sum(turn.nbytes for name in works for turn in results[f"{name}, slow"])
    pace = taken / number / elapsed / KIB
    rows = []
    for name in works:
        slowly, fastly = results[f"{name}, slow"], results[f"{name}, fast"]
        costs = [[turn.cost for turn in turns] for turns in (slowly, fastly)]
        rows.append(
            [
                name,
                *(spread([cost * MIB * 1e6 for cost in each], 0) for each in costs),
                spread(ratios(*costs)),
                *(f"{median(turn.moved for turn in turns):.1f}" for turns in (slowly, fastly)),
                spread([turn.resident / MIB for turn in slowly], 1),
            ]
        )
    table(
        f"slow: {number:,} peers at {pace:.0f} KiB/s and a fast one, "
        f"from {before / MIB:.1f} MiB resident",
        [
            "what is sent",
            "slow: us of CPU for a MiB",
            "fast",
            "slow / fast",
            "slow: KiB in a call",
            "fast",
            "slow: MiB resident",
        ],
        rows,
    )
