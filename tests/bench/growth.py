"""How cost and memory grow with what is in a batch.

Entries: a batch of so many is filled and sent. All entries are the same bytes object, or ranges of
two pages of a file, so that the batch is what grows, and not what the processor has to fetch. A
hook makes an object that Python's garbage collector knows, and looks at again and again while a
batch fills; so hooks are measured without it too.

Bytes: a batch of one file range. The file is sparse and in memory: its holes are all the same page
of the kernel. A turn sends no longer than a minute divided by the number of turns; then what was
sent so far counts.

A part of the cost is the same for any number: a call and its system calls. So a table shows also
what each entry costs beyond the first: the CPU time of a batch, less that of a batch of one entry,
divided by the number of the others. "Most / least" is the ratio of the size that costs most to the
one that costs least, and flat is what stays within 1.2. It is judged twice: for all sizes, by what
is beyond the first; and for those at which a call is no more than a few hundredths of the cost, by
all of the cost. The second is what tells how a batch grows. In the first, small ones are cheaper
because they are sent in other ways. Buffers that all go out in one call are joined, which takes
less for each; 1,000 entries are about what fits into a call. And a range of a byte is read, a long
one goes by sendfile, so the one is not what the other has to start with.

Memory: what tracemalloc tells of a batch, without the objects that its entries refer to, against a
list of the same: of the bytes objects, of pairs (buffer, hook), of triples (descriptor, offset,
count).
"""

from __future__ import annotations

import gc
import os
import tempfile
import tracemalloc
from functools import partial
from statistics import median
from time import perf_counter, process_time
from typing import TYPE_CHECKING

from iobatch import IOBatch, iob_send
from tests.bench.reader import SENDER, dropped, pin
from tests.bench.report import in_turn, ratios, spread, table

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping, Sequence

    from tests.bench.report import Options

    Fill = Callable[[IOBatch, int, int], None]

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
BUFFER = b"h" * 200
FLAT = 1.2


def hook() -> None:
    """Be called when an entry is released."""


# Each fills a batch with so many entries.


def add_buffers(batch: IOBatch, fd: int, count: int) -> None:
    for _ in range(count):
        batch.addbuf(BUFFER)


def add_hooks(batch: IOBatch, fd: int, count: int) -> None:
    for index in range(count):
        if index % 2:
            batch.addbuf(BUFFER, on_release=hook)
        else:
            batch.addbuf(BUFFER)


def add_uncollected(batch: IOBatch, fd: int, count: int) -> None:
    gc.disable()
    add_hooks(batch, fd, count)
    gc.enable()


def add_ranges(batch: IOBatch, fd: int, count: int) -> None:
    for index in range(count):
        batch.addfile(fd, index % 4096, len(BUFFER))


def add_mixed(batch: IOBatch, fd: int, count: int) -> None:
    for index in range(count):
        if index % 2:
            batch.addfile(fd, index % 4096, len(BUFFER))
        else:
            batch.addbuf(BUFFER)


FILLS = {
    "buffers": add_buffers,
    "buffers, each second with a hook": add_hooks,
    "the same, without the garbage collector": add_uncollected,
    "file ranges": add_ranges,
    "buffers and ranges": add_mixed,
}


def send_entries(sock: socket.socket, fill: Fill, fd: int, count: int, rounds: int) -> float:
    """Return the CPU seconds of a batch."""
    batch = IOBatch()
    start = process_time()
    for _ in range(rounds):
        fill(batch, fd, count)
        while iob_send(sock, batch) > 0:
            pass
    return (process_time() - start) / rounds


def send_bytes(sock: socket.socket, fd: int, size: int, rounds: int, seconds: float) -> float:
    """Return the CPU seconds of a batch, by what was sent in time."""
    batch = IOBatch()
    sent = 0
    end = perf_counter() + seconds
    start = process_time()
    for _ in range(rounds):
        batch.addfile(fd, 0, size)
        while (taken := iob_send(sock, batch)) > 0 and perf_counter() < end:
            sent += taken
        batch.reset()
    return (process_time() - start) * size / sent


def show(
    title: str,
    sizes: Mapping[int, str],
    large: int,
    measure: Callable[[int], float],
    turns: int,
) -> None:
    """Print what each one costs in batches of several sizes, some of them large ones."""
    ways = {str(size): partial(measure, size) for size in (1, *sizes)}
    first, *others = in_turn(ways, turns).values()
    whole = {
        size: [seconds / size for seconds in each] for size, each in zip(sizes, others, strict=True)
    }
    beyond = {
        size: [(share * size - one) / (size - 1) for share, one in zip(each, first, strict=True)]
        for size, each in whole.items()
    }
    rows = [
        [name, nanoseconds(median(whole[size])), nanoseconds(median(beyond[size])), ""]
        for size, name in sizes.items()
    ]
    found = extremes(list(beyond.values()))
    rows.append(["most / least", "", spread(found), flat(found)])
    found = extremes([each for size, each in whole.items() if size >= large])
    rows.append([f"from {sizes[large]} on", spread(found), "", flat(found)])
    table(title, ["", "ns for each", "beyond the first", f"within {FLAT}"], rows)


def extremes(costs: Sequence[Sequence[float]]) -> list[float]:
    """Return the ratio, in each turn, of what costs most to what costs least."""
    return ratios(max(costs, key=median), min(costs, key=median))


def flat(found: Sequence[float]) -> str:
    return "yes" if median(found) <= FLAT else "no"


def nanoseconds(seconds: float) -> str:
    """Write a time, be it that of an entry or of a byte."""
    return f"{seconds * 1e9:.0f}" if seconds > 1e-8 else f"{seconds * 1e9:.3f}"


def entries(options: Options) -> None:
    """Print what an entry costs."""
    sizes = {10**power: f"{10**power:,}" for power in range(1, 4 if options.smoke else 7)}
    with dropped() as sock, tempfile.TemporaryFile(buffering=0) as file:
        file.write(os.urandom(8 * KIB))
        for name, fill in FILLS.items():

            def measure(count: int, fill: Fill = fill) -> float:
                rounds = options.rounds(max(1, min(20_000, 200_000 // count)))
                return send_entries(sock, fill, file.fileno(), count, rounds)

            show(f"growth: {name}, CPU", sizes, 1000, measure, options.turns)


def nbytes(options: Options) -> None:
    """Print what a byte costs."""
    sizes = {64 * KIB: "64 KiB", MIB: "1 MiB"}
    if not options.smoke:
        sizes |= {16 * MIB: "16 MiB", 256 * MIB: "256 MiB", 4 * GIB: "4 GiB", 16 * GIB: "16 GiB"}
    with dropped() as sock, os.fdopen(os.memfd_create("sparse"), "wb", 0) as file:
        file.truncate(max(sizes))

        def measure(size: int) -> float:
            rounds = options.rounds(max(1, min(5000, 256 * MIB // size)))
            return send_bytes(sock, file.fileno(), size, rounds, 60 / options.turns)

        show("growth: bytes of a file range, CPU", sizes, MIB, measure, options.turns)


def traced(make: Callable[[], object]) -> int:
    """Return how many bytes an object takes."""
    tracemalloc.start()
    made = make()
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del made
    return size


def memory(options: Options) -> None:
    count = 1000 if options.smoke else 1_000_000
    buffers = [b"%200d" % number for number in range(count)]
    numbers = list(range(count))

    def batch_of_buffers() -> IOBatch:
        batch = IOBatch()
        for buffer in buffers:
            batch.addbuf(buffer)
        return batch

    def batch_of_hooks() -> IOBatch:
        batch = IOBatch()
        for buffer in buffers:
            batch.addbuf(buffer, on_release=hook)
        return batch

    def batch_of_ranges() -> IOBatch:
        batch = IOBatch()
        for number in numbers:
            batch.addfile(0, number, 200)
        return batch

    pairs = {
        "buffers": (batch_of_buffers, lambda: list(buffers)),
        "buffers with hooks": (batch_of_hooks, lambda: [(buffer, hook) for buffer in buffers]),
        "file ranges": (batch_of_ranges, lambda: [(0, number, 200) for number in numbers]),
    }
    rows = []
    for name, (batch, plain) in pairs.items():
        ours, theirs = traced(batch), traced(plain)
        rows.append([name, f"{ours / count:.1f}", f"{theirs / count:.1f}", f"{ours / theirs:.2f}"])
    table(
        f"growth: bytes of memory for each of {count:,} entries",
        ["entries", "batch", "list", "batch / list"],
        rows,
    )


def run(options: Options) -> None:
    """Print the tables."""
    pin(SENDER)
    entries(options)
    nbytes(options)
    memory(options)
