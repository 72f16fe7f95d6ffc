"""Measure how the CPU time and the memory of a batch grow with its number of entries and bytes.

Entries: a batch of n entries is filled and sent. All entries are the same bytes object, or ranges
of two pages of a file, so that only the batch grows, and not the memory that the processor has to
fetch. A hook adds an object that Python's garbage collector tracks, and visits repeatedly while a
batch is filled; so hooks are also measured with the garbage collector disabled.

Bytes: a batch of one file range. The file is sparse and in memory: all its holes are the same page
of the kernel. A measurement ends after at most a minute divided by the number of turns; the cost is
then computed from the bytes sent so far.

Part of the cost is the same for any number of entries: one call and its system calls. So each table
also has the cost of an entry after the first: the CPU time of a batch, minus that of a batch of one
entry, divided by the number of the other entries. "Most / least" is the ratio of the size with the
highest cost to that with the lowest; a cost is flat if this ratio is at most 1.2. It is computed
twice: over all sizes, from the cost after the first entry; and over the sizes at which one call is
only a few hundredths of the cost, from the whole cost. The second ratio shows how a batch scales.
In the first, small batches are cheaper because they are sent by other system calls: buffers that
all fit into one call are joined, which costs less for each buffer, and about 1,000 entries fit into
a call (IOV_MAX). Also, a range of one byte is read and a long range goes by sendfile, so the cost
of the first byte is not part of the cost of a long range.

Memory: the bytes that tracemalloc counts for a batch, without the objects that its entries refer
to, against a list of the same: of the bytes objects, of pairs (buffer, hook), or of triples
(descriptor, offset, count).
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
from tests.bench.reader import SENDER, pin_to_processor, reader_connection
from tests.bench.report import format_spread, print_table, ratios, run_in_turn

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping, Sequence

    from tests.bench.report import Options

    Fill = Callable[[IOBatch, int, int], None]

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
BUFFER = b"h" * 200
FLAT_RATIO = 1.2


def hook() -> None:
    """Do nothing when an entry is released."""


# Each of these functions adds `count` entries to a batch.


def add_buffers(batch: IOBatch, fd: int, count: int) -> None:
    for _ in range(count):
        batch.addbuf(BUFFER)


def add_hooks(batch: IOBatch, fd: int, count: int) -> None:
    for index in range(count):
        if index % 2:
            batch.addbuf(BUFFER, on_release=hook)
        else:
            batch.addbuf(BUFFER)


def add_hooks_without_gc(batch: IOBatch, fd: int, count: int) -> None:
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
    "buffers, every second one with a hook": add_hooks,
    "buffers, every second one with a hook, garbage collector disabled": add_hooks_without_gc,
    "file ranges": add_ranges,
    "buffers and ranges": add_mixed,
}


def send_entries(sock: socket.socket, fill: Fill, fd: int, count: int, rounds: int) -> float:
    """Return the CPU seconds per batch."""
    batch = IOBatch()
    start = process_time()
    for _ in range(rounds):
        fill(batch, fd, count)
        while iob_send(sock, batch) > 0:
            pass
    return (process_time() - start) / rounds


def send_bytes(sock: socket.socket, fd: int, size: int, rounds: int, seconds: float) -> float:
    """Return the CPU seconds per batch, computed from the bytes sent within `seconds`."""
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


def print_costs(
    title: str,
    sizes: Mapping[int, str],
    large: int,
    measure: Callable[[int], float],
    turns: int,
) -> None:
    """Print the cost of an entry or byte by the size of the batch.

    Args:
        title: the table's title.
        sizes: the sizes of batches, and their names.
        large: the first size at which one call is a few hundredths of the cost.
        measure: returns the CPU seconds per batch of a size.
        turns: the number of turns.

    """
    methods = {str(size): partial(measure, size) for size in (1, *sizes)}
    first, *others = run_in_turn(methods, turns).values()
    whole = {
        size: [seconds / size for seconds in each] for size, each in zip(sizes, others, strict=True)
    }
    after_first = {
        size: [(share * size - one) / (size - 1) for share, one in zip(each, first, strict=True)]
        for size, each in whole.items()
    }
    rows = [
        [
            name,
            format_nanoseconds(median(whole[size])),
            format_nanoseconds(median(after_first[size])),
            "",
        ]
        for size, name in sizes.items()
    ]
    found = most_to_least(list(after_first.values()))
    rows.append(["most / least", "", format_spread(found), format_flat(found)])
    found = most_to_least([each for size, each in whole.items() if size >= large])
    rows.append([f"from {sizes[large]} on", format_spread(found), "", format_flat(found)])
    print_table(title, ["", "ns each", "ns each after the first", f"within {FLAT_RATIO}"], rows)


def most_to_least(costs: Sequence[Sequence[float]]) -> list[float]:
    """Return the ratio, in each turn, of the costs with the highest and the lowest median."""
    return ratios(max(costs, key=median), min(costs, key=median))


def format_flat(found: Sequence[float]) -> str:
    return "yes" if median(found) <= FLAT_RATIO else "no"


def format_nanoseconds(seconds: float) -> str:
    """Format the cost of an entry (whole nanoseconds) or of a byte (three decimals)."""
    return f"{seconds * 1e9:.0f}" if seconds > 1e-8 else f"{seconds * 1e9:.3f}"


def print_entry_costs(options: Options) -> None:
    """Print the cost of an entry, for each kind of entry."""
    sizes = {10**power: f"{10**power:,}" for power in range(1, 4 if options.smoke else 7)}
    with reader_connection() as sock, tempfile.TemporaryFile(buffering=0) as file:
        file.write(os.urandom(8 * KIB))
        for name, fill in FILLS.items():

            def measure(count: int, fill: Fill = fill) -> float:
                rounds = options.rounds(max(1, min(20_000, 200_000 // count)))
                return send_entries(sock, fill, file.fileno(), count, rounds)

            print_costs(f"growth: {name}, CPU", sizes, 1000, measure, options.turns)


def print_byte_costs(options: Options) -> None:
    """Print the cost of a byte."""
    sizes = {64 * KIB: "64 KiB", MIB: "1 MiB"}
    if not options.smoke:
        sizes |= {16 * MIB: "16 MiB", 256 * MIB: "256 MiB", 4 * GIB: "4 GiB", 16 * GIB: "16 GiB"}
    with reader_connection() as sock, os.fdopen(os.memfd_create("sparse"), "wb", 0) as file:
        file.truncate(max(sizes))

        def measure(size: int) -> float:
            rounds = options.rounds(max(1, min(5000, 256 * MIB // size)))
            return send_bytes(sock, file.fileno(), size, rounds, 60 / options.turns)

        print_costs("growth: bytes of a file range, CPU", sizes, MIB, measure, options.turns)


def traced_size(make: Callable[[], object]) -> int:
    """Return the bytes that an object allocates."""
    tracemalloc.start()
    made = make()
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del made
    return size


def print_memory(options: Options) -> None:
    """Print the memory of an entry, for each kind of entry."""
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
        ours, theirs = traced_size(batch), traced_size(plain)
        rows.append([name, f"{ours / count:.1f}", f"{theirs / count:.1f}", f"{ours / theirs:.2f}"])
    print_table(
        f"growth: bytes of memory per entry, {count:,} entries",
        ["entries", "batch", "list", "batch / list"],
        rows,
    )


def run(options: Options) -> None:
    """Print the tables."""
    pin_to_processor(SENDER)
    print_entry_costs(options)
    print_byte_costs(options)
    print_memory(options)
