"""The responses that tests/bench/send.py and goals.py measure."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Sequence

KIB = 1024


@frozen
class Workload:
    """A response, and the connection it is sent over.

    Attributes:
        name: the name in the tables.
        parts: for each part the length of a buffer, and the offset and count of the file range
            after it.
        nodelay: set TCP_NODELAY.

    """

    name: str
    parts: Sequence[tuple[int, int, int]]
    nodelay: bool = True

    @property
    def size(self) -> int:
        return sum(head + count for head, _, count in self.parts)

    @property
    def buffers_only(self) -> bool:
        """The response has no file range."""
        return not any(count for _, _, count in self.parts)

    def digest(self, data: bytes) -> int:
        """Return the CRC of the response, given the bytes of the file."""
        crc = 0
        for head, offset, count in self.parts:
            crc = zlib.crc32(data[offset : offset + count], zlib.crc32(b"h" * head, crc))
        return crc

    def suits(self, method: str) -> bool:
        """Return whether a method applies.

        Those by sendfile and mmap need a file range, and addbufs adds more than one buffer.
        """
        if "addbufs" in method:
            return self.buffers_only and len(self.parts) > 1
        return not self.buffers_only or not method.endswith(("sendfile", "mmap"))


HEADER = 200
MULTIPART = [
    (HEADER, 0, 0),
    *((100, index * 1_000_003, 8 * KIB) for index in range(8)),
    (40, 0, 0),
]


def header_and_file(kib: int, *, nodelay: bool = True) -> Workload:
    size = f"{kib} KiB" if kib < KIB else f"{kib // KIB} MiB"
    name = f"200 B + {size}" if nodelay else f"200 B + {size}, Nagle"
    return Workload(name, [(HEADER, 0, kib * KIB)], nodelay)


LONE = Workload("lone 200 B", [(HEADER, 0, 0)])
MANY = Workload("64 buffers of 200 B", [(HEADER, 0, 0)] * 64)
SMALL = header_and_file(1)
MIDDLE = header_and_file(16)
LARGE = header_and_file(64)
PIPELINED = Workload("100 pipelined (200 B + 1 KiB)", [(HEADER, 0, KIB)] * 100)
WORKLOADS = [
    LONE,
    Workload("lone 200 B, Nagle", LONE.parts, nodelay=False),
    Workload("8 buffers of 200 B", [(HEADER, 0, 0)] * 8),
    MANY,
    SMALL,
    header_and_file(4),
    MIDDLE,
    header_and_file(32),
    LARGE,
    header_and_file(128),
    header_and_file(256),
    header_and_file(KIB),
    header_and_file(16 * KIB),
    Workload("multipart, 8 ranges of 8 KiB", MULTIPART),
    PIPELINED,
]
# The workloads in the breakdown, in its tables by line, and in the plot.
BROKEN_DOWN = [LONE, MANY, SMALL, MIDDLE, LARGE, PIPELINED]
BY_LINE = [SMALL, PIPELINED]
PLOTTED = [LONE, SMALL, MIDDLE, header_and_file(256), header_and_file(KIB), PIPELINED]
