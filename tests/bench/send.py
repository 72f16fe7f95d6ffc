"""Measure iob_send against libowfat's own, in C: CPU time for each batch, in turn, as ratios.

Run it as `python -m tests.bench.send [PAIRS]`. It needs a C compiler and libowfat (Debian:
libowfat-dev).
"""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from time import process_time
from typing import TYPE_CHECKING

from iobatch import IOBatch, iob_send

if TYPE_CHECKING:
    from collections.abc import Iterator

HEADER = b"h" * 200
KIB = 1024
# What is sent, as the C program calls it, and how often.
WORK = [
    ("lone 200 B buffer", "buffers", 1, 200_000),
    ("8 buffers of 200 B", "buffers", 8, 50_000),
    ("64 buffers of 200 B", "buffers", 64, 10_000),
    ("200 B + 1 KiB", "file", KIB, 60_000),
    ("200 B + 4 KiB", "file", 4 * KIB, 60_000),
    ("200 B + 16 KiB", "file", 16 * KIB, 30_000),
    ("200 B + 32 KiB", "file", 32 * KIB, 20_000),
    ("200 B + 64 KiB", "file", 64 * KIB, 8_000),
    ("200 B + 128 KiB", "file", 128 * KIB, 4_000),
    ("200 B + 256 KiB", "file", 256 * KIB, 2_000),
    ("200 B + 1 MiB", "file", 1024 * KIB, 500),
]


@contextmanager
def connected(owfat: Path) -> Iterator[socket.socket]:
    """Give a connection to a process that reads and drops everything."""
    with subprocess.Popen([owfat, "reader"], stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout is not None
        with socket.create_connection(("127.0.0.1", int(reader.stdout.readline()))) as sock:
            yield sock


def buffers(sock: socket.socket, count: int, rounds: int) -> float:
    """Send so many 200-byte buffers in a batch; return the CPU seconds of all rounds."""
    batch = IOBatch()
    start = process_time()
    for _ in range(rounds):
        for _ in range(count):
            batch.addbuf(HEADER)
        while iob_send(sock, batch) > 0:
            pass
    return process_time() - start


def file(sock: socket.socket, nbytes: int, rounds: int) -> float:
    """Send a 200-byte buffer and a file; return the CPU seconds of all rounds."""
    with tempfile.TemporaryFile(buffering=0) as body:
        body.write(b"x" * nbytes)
        fd = body.fileno()
        batch = IOBatch()
        start = process_time()
        for _ in range(rounds):
            batch.addbuf(HEADER)
            batch.addfile(fd, 0, nbytes)
            while iob_send(sock, batch) > 0:
                pass
        return process_time() - start


def main() -> None:
    """Print the table."""
    pairs = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    os.sched_setaffinity(0, {0})  # as in owfat.c
    with tempfile.TemporaryDirectory() as folder:
        owfat = Path(folder) / "owfat"
        source = Path(__file__).with_name("owfat.c")
        subprocess.run(["cc", "-O2", "-o", owfat, source, "-lowfat"], check=True)
        print("| work | iobatch, us | libowfat, us | ratio: median | min | max |")
        print("|---|---|---|---|---|---|")
        for name, kind, size, rounds in WORK:
            ours, theirs, ratios = [], [], []
            for _ in range(pairs):
                with connected(owfat) as sock:
                    run = buffers if kind == "buffers" else file
                    ours.append(run(sock, size, rounds) / rounds * 1e6)
                command = [owfat, kind, str(size), str(rounds)]
                theirs.append(float(subprocess.check_output(command)))
                ratios.append(ours[-1] / theirs[-1])
            cells = [statistics.median(ours), statistics.median(theirs)]
            cells += [statistics.median(ratios), min(ratios), max(ratios)]
            print(f"| {name} | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |", flush=True)


if __name__ == "__main__":
    main()
