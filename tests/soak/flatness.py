"""Samples of what a process holds, and whether it grows from each to the next.

A sample is taken when the process has nothing to do, after a garbage collection. The first one is
taken after a warm-up, and the others after the same work again.

Counts are exact: of descriptors, threads, children, and of the objects of each type that Python's
garbage collector tracks. A count may exceed all earlier ones in one sample, and in one more for
each four samples: something that is made once, such as a thread or a cache, may be made late. What
leaks exceeds them again and again.

Two figures have a bound, because they depend on caches and free lists:

- the memory blocks of Python (sys.getallocatedblocks), of which 2000, and 1 for each 50 rounds, may
  be added: the caches of the server fill ever more slowly, for tens of thousands of rounds. A block
  that is kept in each round is seen, such as a bytes object;
- the resident memory, of which 8 MiB, and 8 bytes for each round, may be added. So memory outside
  of Python that is kept in each of a hundred thousand rounds is seen, if it has 100 bytes.
"""

from __future__ import annotations

import gc
import sys
from collections import Counter
from ctypes import CDLL
from pathlib import Path

from attrs import define, evolve, field, frozen

from tests.support.usage import descriptor_count, resident_bytes, thread_count

MIB = 1 << 20
SPARE_BLOCKS = 2000
SPARE_BYTES = 8 * MIB
# It returns freed memory to the system.
_TRIM = getattr(CDLL(None), "malloc_trim", int)


@frozen
class Sample:
    """What a process holds at a time."""

    resident: int  # bytes
    # The memory blocks of Python; 0: unknown.
    blocks: int
    # By their names: descriptors, threads, children, and types of objects.
    counts: dict[str, int]

    @property
    def objects(self) -> int:
        return sum(count for name, count in self.counts.items() if "." in name)


def sample() -> Sample:
    """Return what this process holds after a garbage collection."""
    for _ in range(3):  # finalizers may leave more garbage
        gc.collect()
    _TRIM(0)
    counts = Counter(f"{type(each).__module__}.{_name(each)}" for each in gc.get_objects())
    counts["descriptors"] = descriptor_count()
    counts["threads"] = thread_count()
    counts["children"] = len(Path("/proc/thread-self/children").read_text().split())
    return Sample(resident_bytes(), sys.getallocatedblocks(), dict(counts))


def _name(each: object) -> str:
    return type(each).__qualname__


@define
class Flatness:
    """Judges the samples of a process."""

    first: Sample
    last: Sample = field(init=False)
    # The number of batches or requests since the first sample.
    rounds: int = field(init=False, default=0)
    _samples: int = field(init=False, default=0)
    # The most of each count so far, and the number of samples that exceeded it.
    _most: dict[str, int] = field(init=False)
    _grown: dict[str, int] = field(init=False, factory=dict[str, int])

    def __attrs_post_init__(self) -> None:
        self.last = evolve(self.first)  # a copy: from now on there are two samples
        self._most = dict(self.first.counts)

    def add(self, taken: Sample, rounds: int) -> None:
        """Add the next sample, after this number of rounds."""
        self.last = taken
        self.rounds += rounds
        self._samples += 1
        for name, count in taken.counts.items():
            if count > self._most.get(name, 0):
                self._most[name] = count
                self._grown[name] = self._grown.get(name, 0) + 1

    def growth(self) -> list[str]:
        """Return a description of everything that is not flat."""
        first, last = self.first.counts, self.last.counts
        found = [
            f"{name}: {first.get(name, 0)}, then {last.get(name, 0)}"
            for name, times in self._grown.items()
            if times > 1 + self._samples // 4
        ]
        blocks = self.last.blocks - self.first.blocks
        if blocks > SPARE_BLOCKS + self.rounds // 50:
            found.append(f"{blocks} more blocks of memory")
        resident = self.last.resident - self.first.resident
        if resident > SPARE_BYTES + 8 * self.rounds:
            found.append(f"{resident / MIB:.1f} more MiB of memory")
        return found
