"""How many bytes a writer may send in one turn of the event loop, so that others run."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from attrs import define, field

if TYPE_CHECKING:
    import asyncio


@final
@define(eq=False)
class TurnBudget:
    """The bytes that may still be sent before the event loop has had a turn.

    A writer that has to wait gets a full budget with the loop's next call. One that never waits
    asks the loop for a refill when half of it is spent, so it does not run out, and most writes
    cost nothing for that.
    """

    _loop: asyncio.AbstractEventLoop
    _limit: int
    left: int = field(init=False)
    # Below this the loop is asked for a refill.
    scarce: int = field(init=False)
    # What was left when the loop was asked for a refill; -1: it was not asked.
    _asked_at: int = field(init=False, default=-1)

    def __attrs_post_init__(self) -> None:
        self.left = self._limit
        self.scarce = self._limit // 2

    def refill(self) -> None:
        """Start a new turn."""
        self.left = self._limit
        self._asked_at = -1

    def spend(self, nbytes: int) -> None:
        """Take off what was sent."""
        self.left -= nbytes

    def schedule_refill(self) -> None:
        """Have the loop refill the budget in its next turn, if little is left."""
        if self.left < self.scarce and self._asked_at < 0 and not self._loop.is_closed():
            self._asked_at = self.left
            self._loop.call_soon(self._renew)

    def _renew(self) -> None:
        """Refill what was spent before the loop was asked, unless refill() has come first."""
        if self._asked_at >= 0:
            spent = self._asked_at - self.left
            self.refill()
            self.left -= spent
