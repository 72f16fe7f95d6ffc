"""The bytes that a writer may send in one turn of the event loop, so that other callbacks run."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from attrs import define, field

from iobatch._forms import compiled_methods

if TYPE_CHECKING:
    import asyncio


@final
@compiled_methods
@define(eq=False)
class TurnBudget:
    """The number of bytes that may still be sent in this turn of the event loop.

    A writer that waits gets a full budget when the loop calls it again. A writer that never waits
    asks the loop for a refill when half of the budget is spent. So the budget does not run out, and
    most writes make no call to the loop.
    """

    _loop: asyncio.AbstractEventLoop
    _limit: int
    left: int = field(init=False)
    # When `left` is below this value, the loop is asked for a refill.
    refill_below: int = field(init=False)
    # The value of `left` when the loop was asked for a refill; -1: no request is pending.
    _left_when_asked: int = field(init=False, default=-1)

    def __attrs_post_init__(self) -> None:
        self.left = self._limit
        self.refill_below = self._limit // 2

    def refill(self) -> None:
        """Start a new turn, with a full budget."""
        self.left = self._limit
        self._left_when_asked = -1

    def spend(self, nbytes: int) -> None:
        """Subtract bytes that were sent."""
        self.left -= nbytes

    def schedule_refill(self) -> None:
        """Have the loop refill the budget in its next turn, if little is left."""
        if (
            self.left < self.refill_below
            and self._left_when_asked < 0
            and not self._loop.is_closed()
        ):
            self._left_when_asked = self.left
            self._loop.call_soon(self._scheduled_refill)

    def _scheduled_refill(self) -> None:
        """Refill the bytes spent before the request, unless refill() has run since."""
        if self._left_when_asked >= 0:
            spent = self._left_when_asked - self.left
            self.refill()
            self.left -= spent
