"""Show that nothing leaks, and no byte is wrong, in a million batches and under a hostile load.

`python -m tests.soak [--seconds N]` takes N seconds at most, or a little more; 900 by default.

In the first three quarters of the time a million batches are sent, in every way that there is, to
peers that read, stall, reset, close and shut down at random, while their files are replaced and
truncated; on a slow machine there are fewer. In the rest the file server runs among clients that
end at random at any point, faults of the machine and changes of its files. flatness.py says what is
measured, and how it is judged. A batch, hook, byte or response that is wrong ends the program.

The exit status is 1 if something is not flat.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from functools import partial
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

import trustme

import iobatch
from tests.soak.flatness import MIB, Flatness
from tests.soak.served import SETUPS, soak_server
from tests.soak.ways import SHARES, WAYS, new_contexts, soak_way
from tests.support.httpd import Keys

if TYPE_CHECKING:
    from collections.abc import Iterator

BATCHES = 1_000_000
SAMPLES = 10
# The part of the time that is for batches.
FIRST = 3 / 4
# Of all clients, between two samples of the server.
ACTIONS = 300
COLUMNS = ("", "rounds", "MiB", "descriptors", "threads", "children", "objects", "blocks", "flat")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak")
    parser.add_argument("--seconds", type=float, default=900, metavar="N")
    seconds = parser.parse_args().seconds
    begun = monotonic()
    print(f"iobatch is {'compiled' if iobatch.COMPILED else 'pure Python'}")
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS))
    grown: list[str] = []
    for name, flatness in results(begun, seconds):
        found = flatness.growth()
        grown += [f"{name}: {each}" for each in found]
        print("| " + " | ".join(row(name, flatness, "no" if found else "yes")) + " |", flush=True)
    print(f"\n{monotonic() - begun:.0f} seconds; not flat: {'; '.join(grown) or 'nothing'}")
    return bool(grown)


def results(begun: float, seconds: float) -> Iterator[tuple[str, Flatness]]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        yield from batches(folder, begun, begun + FIRST * seconds)
        yield from servers(folder, begun + seconds)


def batches(folder: Path, begun: float, end: float) -> Iterator[tuple[str, Flatness]]:
    """Yield the result of each way; a way that is late has fewer batches."""
    contexts = new_contexts()
    shares = sum(SHARES.values())
    total = 0
    for number, way in enumerate(WAYS, 1):
        place = folder / f"way{number}"
        place.mkdir()
        late = partial(is_after, begun + (end - begun) * number / len(WAYS))
        flatness = soak_way(
            way,
            place,
            contexts,
            batches=BATCHES * SHARES[way] // shares,
            samples=SAMPLES,
            late=late,
        )
        total += flatness.rounds
        yield way, flatness
    print(f"{total:,} batches, and {total // SAMPLES:,} for the warm-up\n")


def servers(folder: Path, end: float) -> Iterator[tuple[str, Flatness]]:
    """Yield the result of each process of each server."""
    keys = Keys(folder, trustme.CA())
    begun = monotonic()
    for number, setup in enumerate(SETUPS, 1):
        place = folder / setup.name
        place.mkdir()
        late = partial(is_after, begun + (end - begun) * number / len(SETUPS))
        soak = soak_server(setup, place, keys, actions=ACTIONS, cycles=sys.maxsize, late=late)
        seen = ", ".join(f"{name}: {count}" for name, count in sorted(soak.seen.items()))
        print(f"{setup.name}: {soak.actions} actions; {seen}\n")
        for pid, flatness in soak.flatness.items():
            if flatness.rounds:  # a worker that was killed soon has one sample
                yield f"{setup.name}, process {pid}", flatness


def is_after(time: float) -> bool:
    return monotonic() > time


def row(name: str, flatness: Flatness, flat: str) -> list[str]:
    first, last = flatness.first, flatness.last
    counts = [
        f"{first.counts[each]}, {last.counts[each]}"
        for each in ("descriptors", "threads", "children")
    ]
    return [
        name,
        f"{flatness.rounds:,}",
        f"{first.resident / MIB:.1f}, {last.resident / MIB:.1f}",
        *counts,
        f"{first.objects:,}, {last.objects:,}",
        f"{first.blocks:,}, {last.blocks:,}",
        flat,
    ]


if __name__ == "__main__":
    sys.exit(main())
