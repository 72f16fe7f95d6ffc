"""The queue of posted writes: their order, their bytes, and how the end of one ends others."""

from __future__ import annotations

import errno
import os
from collections import OrderedDict
from typing import TYPE_CHECKING, final

from attrs import define, field

from iobatch._errors import copy_to_raise
from iobatch._forms import compiled_methods
from iobatch.aio._posted import ENDINGS, PENDING, PostedWrite, WriteStatus

if TYPE_CHECKING:
    from collections.abc import Callable


def aborted() -> OSError:
    """Return the error of a write that ends as ABORTED."""
    return OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))


@final
@compiled_methods
@define(eq=False)
class WriteQueue:
    """The pending writes, in the order in which they are sent. Only the head can be partly sent."""

    # Called with each write that ends, and its final status.
    _on_end: Callable[[PostedWrite, WriteStatus], None]
    # An ordered set, since a write can leave from any position. Other modules only test whether it
    # is empty.
    order: OrderedDict[PostedWrite, None] = field(
        init=False, factory=OrderedDict[PostedWrite, None]
    )
    # The sum of max_bytes of the queued writes. The head may have sent some of its bytes already.
    _posted_bytes: int = field(init=False, default=0)
    # The first unretrieved error, or None.
    _unretrieved: Exception | None = field(init=False, default=None)

    @property
    def head(self) -> PostedWrite | None:
        """The first write, or None."""
        return next(iter(self.order), None)

    @property
    def writes(self) -> list[PostedWrite]:
        """All writes, in order."""
        return list(self.order)

    @property
    def bytesleft(self) -> int:
        """The number of bytes still to be sent."""
        head = self.head
        return self._posted_bytes if head is None else self._posted_bytes - head.transferred

    def append(self, write: PostedWrite) -> None:
        """Add a write after all others."""
        self._posted_bytes += write.max_bytes
        self.order[write] = None

    def prepend(self, write: PostedWrite) -> None:
        """Add a write that has started, before all others."""
        self.append(write)
        self.order.move_to_end(write, last=False)

    def end_one(
        self, write: PostedWrite, status: WriteStatus, error: Exception | None = None
    ) -> None:
        """End one write, and no other."""
        # If a signal handler's exception stops this call, the next call for the write completes it.
        write.end(status, error)
        self._on_end(write, status)
        self._posted_bytes -= write.max_bytes
        del self.order[write]

    def end_early(
        self, write: PostedWrite, status: WriteStatus, error: Exception | None = None
    ) -> None:
        """End a write before it is done, and the writes after it if ENDINGS requires that."""
        if write.status is not PENDING:
            return  # the end of an earlier write aborted it
        ending = ENDINGS[status]
        if ending.reported_by_drain and write.done_callbacks is None and self._unretrieved is None:
            self._unretrieved = error
        later: list[PostedWrite] = []
        if write.part_way and ending.aborts_later_writes:
            writes = self.writes
            later = writes[writes.index(write) + 1 :]
        self.end_one(write, status, error)
        self._abort(later)

    def abort_all(self) -> None:
        """End every write as ABORTED."""
        self._abort(self.writes)

    def _abort(self, writes: list[PostedWrite]) -> None:
        for write in writes:
            self.end_one(write, WriteStatus.ABORTED, aborted())

    def keep_unretrieved(self, error: Exception | None) -> None:
        """Keep an error that belongs to no pending write, for drain() to raise."""
        if self._unretrieved is None:
            self._unretrieved = error

    def mark_retrieved(self, error: Exception | None) -> None:
        """Forget an error that was retrieved, so that drain() doesn't raise it."""
        if self._unretrieved is error:
            self._unretrieved = None

    def raise_unretrieved(self) -> None:
        """Raise the first unretrieved error, once."""
        error, self._unretrieved = self._unretrieved, None
        if error is not None:
            raise copy_to_raise(error)
