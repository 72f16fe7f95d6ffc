"""A job of a sender: a response, and how a method that can't send files reads it in steps."""

from __future__ import annotations

import os
import socket
from time import process_time
from typing import TYPE_CHECKING

from attrs import field, frozen

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import BinaryIO

    Part = tuple[bytes, int, int]  # a buffer; offset and count of the file range after it

# The best of the measured sizes from 32 KiB to 1 MiB: from 128 KiB on malloc maps new pages for
# each piece, and joining pieces takes up to four times as long. uvloop and aiofastnet don't join.
CHUNK = 120 * 1024


@frozen
class Job:
    """A response, its connection, and the number of times to send it.

    Attributes:
        buffers: all buffers, if the response has no file range; else an empty list.

    """

    sock: socket.socket
    file: BinaryIO
    nodelay: bool
    rounds: int
    parts: Sequence[Part]
    buffers: list[bytes] = field(init=False)

    @buffers.default
    def _list_buffers(self) -> list[bytes]:
        if any(count for _, _, count in self.parts):
            return []
        return [head for head, _, _ in self.parts]

    @property
    def lone(self) -> bytes | None:
        """The buffer, if the response is one buffer; else None."""
        return self.buffers[0] if len(self.buffers) == 1 else None

    def steps(self, chunk: int = CHUNK) -> list[Sequence[Part]]:
        """Divide the parts into steps: each is read at once and written at once."""
        if sum(count for _, _, count in self.parts) <= chunk:
            return [self.parts]
        return [
            [(b"" if at > offset else head, at, min(chunk, offset + count - at))]
            for head, offset, count in self.parts
            for at in range(offset, offset + count, chunk)
        ]

    def load(self, step: Sequence[Part]) -> list[bytes]:
        """Return the buffers of a step, its file ranges read."""
        if self.buffers:
            return self.buffers
        fd = self.file.fileno()
        pieces = []
        for head, offset, count in step:
            pieces.append(head)
            if count:
                pieces.append(os.pread(fd, count, offset))
        return pieces

    def start(self) -> float:
        """Set TCP_NODELAY, which packages may have changed; return the CPU time so far."""
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, self.nodelay)
        return process_time()
