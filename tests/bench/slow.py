"""Measure the CPU time and memory of sending to a thousand slow peers, against one fast peer.

One selectors loop sends to all connections: whenever a socket is writable, it refills an empty
batch, and calls iob_send once. 1,000 slow peers with small receive buffers each read 8 KiB eight
times a second, evenly spread over time, in a process on the other processor. The fast peer discards
all bytes (see reader.py). In turns of its own, the same loop sends it as many bytes as all slow
peers together can receive in a turn.

A byte to a slow peer costs more with any program: a socket has room for only a few KiB at a time,
so each call moves few bytes and needs its own epoll event. The columns "KiB per call" show
this, and so does the row "16 MiB files, os.sendfile": the same loop with bare sendfile calls.

Memory is the sender's resident set: before the first connection, and after the turns of a row
(median and range). The kernel's socket buffers are not part of it.
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
from tests.bench.reader import (
    READER,
    SENDER,
    child_process,
    pin_to_processor,
    raise_descriptor_limit,
    reader_connection,
    tuned_socket,
)
from tests.bench.report import format_spread, print_table, ratios, run_in_turn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from tests.bench.report import Options

    # Sends to a socket from the state of its connection; returns the bytes sent, or below 1.
    Send = Callable[[socket.socket, Any], int]

KIB = 1024
MIB = 1024 * KIB
HEADER = b"h" * 200
PEERS = 1000
LARGE = 16 * MIB
# SO_SNDBUF. By default the kernel may buffer 2 MiB, which a slow peer takes half a minute to read.
SEND_BUFFER = 64 * KIB
READ_SIZE = 8 * KIB  # of a slow peer
READS_PER_SECOND = 8  # of a slow peer
SLOTS = 25  # slow peers read in this number of groups, one after the other
SECONDS = 20  # for all turns of the slow peers together


# The slow peers.


def read_slowly(socks: Sequence[socket.socket]) -> None:
    """Read from all sockets at the slow peers' pace."""
    pin_to_processor(READER)
    slots = [socks[slot::SLOTS] for slot in range(SLOTS)]
    buffer = bytearray(READ_SIZE)
    start = monotonic()
    for tick in count():
        sleep(max(0, start + tick / (READS_PER_SECOND * SLOTS) - monotonic()))
        for sock in slots[tick % SLOTS]:
            with suppress(BlockingIOError):
                sock.recv_into(buffer, READ_SIZE, socket.MSG_TRUNC | socket.MSG_DONTWAIT)


@contextmanager
def slow_peers(number: int) -> Iterator[list[socket.socket]]:
    """Yield connections to slow peers."""
    with ExitStack() as stack:
        senders, readers = [], []
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2 * READ_SIZE)
            for _ in range(number):
                senders.append(stack.enter_context(tuned_socket()))
                senders[-1].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
                senders[-1].connect(listener.getsockname())
                readers.append(listener.accept()[0])
        stack.enter_context(child_process(read_slowly, readers))
        for sock in readers:
            sock.close()
        yield senders


# The methods to send. Each connection has its own state: a batch, or an offset.


def send_batch(fill: Callable[[IOBatch], None], sock: socket.socket, batch: IOBatch) -> int:
    """Refill the batch if it is empty, and call iob_send."""
    if not batch:
        fill(batch)
    nbytes = iob_send(sock, batch)
    if nbytes == IOB_ERROR:
        raise batch.error or OSError
    return nbytes


def send_by_sendfile(fd: int, sock: socket.socket, offset: list[int]) -> int:
    """Call sendfile at the offset in the large file, which starts again at its end."""
    with suppress(BlockingIOError):
        nbytes = os.sendfile(sock.fileno(), fd, offset[0], min(LARGE - offset[0], SEND_LIMIT))
        offset[0] = (offset[0] + nbytes) % LARGE
        return nbytes
    return 0


def fill_from_file(fd: int, size: int, batch: IOBatch) -> None:
    """Add a header and a file range."""
    batch.addbuf(HEADER)
    batch.addfile(fd, 0, size)


def fill_from_memory(body: bytes, batch: IOBatch) -> None:
    """Add a header and a buffer."""
    batch.addbuf(HEADER)
    batch.addbuf(body)


@frozen
class Turn:
    """The measurements of a turn."""

    cpu: float  # seconds
    nbytes: int  # sent
    calls: int  # that sent bytes
    resident: int  # resident set at the end of the turn, in bytes

    @property
    def cost(self) -> float:
        """CPU seconds per byte."""
        return self.cpu / self.nbytes

    @property
    def kib_per_call(self) -> float:
        """KiB per call."""
        return self.nbytes / self.calls / KIB


def resident_bytes() -> int:
    """Return this process's resident set in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def serve(send: Send, states: Mapping[socket.socket, Any], limit: float, seconds: float) -> Turn:
    """Send until `limit` bytes are sent or `seconds` have passed, but at least one byte."""
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
        return Turn(process_time() - start, nbytes, calls, resident_bytes())


def run(options: Options) -> None:
    """Print the table."""
    pin_to_processor(SENDER)
    number = 50 if options.smoke else PEERS
    body = Random(1).randbytes(LARGE)
    raise_descriptor_limit()
    before = resident_bytes()
    with ExitStack() as stack:
        file = stack.enter_context(tempfile.TemporaryFile(buffering=0))
        file.write(body)
        fd = file.fileno()
        workloads: dict[str, tuple[Send, Callable[[], Any]]] = {
            "16 MiB files": (partial(send_batch, partial(fill_from_file, fd, LARGE)), IOBatch),
            "16 MiB files, os.sendfile": (partial(send_by_sendfile, fd), lambda: [0]),
            "16 KiB files": (partial(send_batch, partial(fill_from_file, fd, 16 * KIB)), IOBatch),
            "16 MiB buffers": (partial(send_batch, partial(fill_from_memory, body)), IOBatch),
        }
        slow = stack.enter_context(slow_peers(number))
        fast = stack.enter_context(reader_connection())
        seconds = (1 if options.smoke else SECONDS) / options.turns / len(workloads)
        limit = number * READ_SIZE * READS_PER_SECOND * seconds
        methods = {}
        for name, (send, state) in workloads.items():
            for peers, socks in (("slow", slow), ("fast", [fast])):
                states = {sock: state() for sock in socks}
                methods[f"{name}, {peers}"] = partial(serve, send, states, limit, seconds)
        # Fill the slow peers' socket buffers, so that all turns start alike.
        serve(workloads["16 MiB files"][0], {sock: IOBatch() for sock in slow}, float("inf"), 1)
        start = monotonic()
        results = run_in_turn(methods, options.turns)
        elapsed = monotonic() - start
    taken = sum(turn.nbytes for name in workloads for turn in results[f"{name}, slow"])
    pace = taken / number / elapsed / KIB
    rows = []
    for name in workloads:
        slow_turns, fast_turns = results[f"{name}, slow"], results[f"{name}, fast"]
        costs = [[turn.cost for turn in turns] for turns in (slow_turns, fast_turns)]
        rows.append(
            [
                name,
                *(format_spread([cost * MIB * 1e6 for cost in each], 0) for each in costs),
                format_spread(ratios(*costs)),
                *(
                    f"{median(turn.kib_per_call for turn in turns):.1f}"
                    for turns in (slow_turns, fast_turns)
                ),
                format_spread([turn.resident / MIB for turn in slow_turns], 1),
            ]
        )
    print_table(
        f"slow: {number:,} slow peers at {pace:.0f} KiB/s, and a fast peer; "
        f"{before / MIB:.1f} MiB resident before the first connection",
        [
            "response",
            "slow: CPU per MiB, us",
            "fast: CPU per MiB, us",
            "slow / fast",
            "slow: KiB per call",
            "fast: KiB per call",
            "slow: MiB resident",
        ],
        rows,
    )
