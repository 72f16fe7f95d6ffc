"""A limit on a connection's rate."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from attrs import define, field

from iobatch import IOB_AGAIN

if TYPE_CHECKING:
    import socket

# The most bytes that leave at once are those of this many seconds. A connection that was slower
# than its rate may catch up by as much.
BURST = 1 / 8


@define(eq=False)
class Throttle:
    """An iob_write callback that sends no more than a rate allows.

    It stands last, after codings and TLS: the rate counts the bytes that leave.
    """

    # In bytes per second.
    _rate: int
    # Nothing is sent before this time (time.monotonic).
    resume_at: float = field(init=False, default=0.0)
    # The most bytes that are sent at once.
    quantum: int = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.quantum = max(1, int(self._rate * BURST))

    def pauses(self, now: float) -> bool:
        """Return whether nothing may be sent at a time (time.monotonic)."""
        return now < self.resume_at

    def __call__(self, sock: socket.socket, view: memoryview) -> int:
        """Send a part of the view, or return IOB_AGAIN before the time has come."""
        now = monotonic()
        if self.pauses(now):
            return IOB_AGAIN
        nbytes = sock.send(view[: self.quantum])
        self.resume_at = max(self.resume_at, now - BURST) + nbytes / self._rate
        return nbytes
