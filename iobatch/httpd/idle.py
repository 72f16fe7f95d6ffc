"""Idle connections, which give way to new ones where all places are taken."""

from __future__ import annotations

from heapq import nsmallest
from operator import itemgetter
from typing import TYPE_CHECKING

from attrs import define, field

if TYPE_CHECKING:
    from iobatch.httpd.connection import Connection

# The connections that are found at once: looking at all takes a millisecond where there are 10,000.
MAX_FOUND = 64


@define(eq=False)
class IdleConnections:
    """Finds the connection that has been idle for the longest time."""

    # All connections of the server.
    _connections: set[Connection]
    # The time from the last activity of an idle connection to its deadline, in seconds.
    _timeout: float
    # The connections that were found, each with its deadline then, which moves when it is active.
    # The longest idle one is the last.
    _found: list[tuple[float, Connection]] = field(
        init=False, factory=list[tuple[float, "Connection"]]
    )
    # When they were looked for (time.monotonic); None: never.
    _found_at: float | None = field(init=False, default=None)

    def longest(self, now: float) -> Connection | None:
        """Return the connection that has been idle for the longest time; None: none is idle.

        Args:
            now: time.monotonic() in this turn of the loop. A connection that was active in this
                turn is not idle: its next request may be on its way.

        """
        while True:
            while self._found:
                deadline, connection = self._found[-1]
                if (
                    connection in self._connections
                    and connection.is_idle
                    and connection.deadline == deadline
                    and not connection.has_input
                ):
                    return connection
                self._found.pop()
            if self._found_at == now:
                return None
            self._found_at = now
            newest = now + self._timeout
            idle = (
                (each.deadline, each)
                for each in self._connections
                if each.is_idle and each.deadline < newest
            )
            self._found = nsmallest(MAX_FOUND, idle, key=itemgetter(0))[::-1]
