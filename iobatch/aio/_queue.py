"""The queue of posted writes: their order, their bytes, and how the end of one ends others."""

from __future__ import annotations

import errno
import os
from collections import OrderedDict
from typing import TYPE_CHECKING, final

from attrs import define, field

from iobatch.aio._operation import ENDINGS, PENDING, PostedWrite, WriteStatus

if TYPE_CHECKING:
    from collections.abc import Callable


@final
@define(eq=False)
class WriteQueue:
    """The pending writes, in the order in which they are sent. Only the head is sent in part."""

    # Called with each write that ends, and how.
    _on_end: Callable[[PostedWrite, WriteStatus], None]
    # An ordered set, since a write may leave it from any place. Others only ask if it is empty.
    order: OrderedDict[PostedWrite, None] = field(init=False, factory=OrderedDict)
    # The bytes that they may send; the head may have sent some of its own already.
    _posted_bytes: int = field(init=False, default=0)
    # The first error that was not retrieved.
    _unretrieved: Exception | None = field(init=False, default=None)

    @property
    def head(self) -> PostedWrite | None:
        """The first write; None: there is none."""
        return next(iter(self.order), None)

    @property
    def writes(self) -> list[PostedWrite]:
        """All of them, in their order."""
        return list(self.order)

    @property
    def bytesleft(self) -> int:
        """The bytes that are still to be sent."""
        head = self.head
        return self._posted_bytes if head is None else self._posted_bytes - head.transferred

    def append(self, write: PostedWrite) -> None:
        """Add a write after all others."""
        self._posted_bytes += write.max_bytes
        self.order[write] = None

    def prepend(self, write: PostedWrite) -> None:
        """Add a write that was begun before all others."""
        self.append(write)
        self.order.move_to_end(write, last=False)

    def end_one(
        self, write: PostedWrite, status: WriteStatus, error: Exception | None = None
    ) -> None:
        """End a write, and no other."""
        # What an exception of a signal handler leaves undone here, the next call does.
        write.end(status, error)
        self._on_end(write, status)
        self._posted_bytes -= write.max_bytes
        del self.order[write]

    def end_early(
        self, write: PostedWrite, status: WriteStatus, error: Exception | None = None
    ) -> None:
        """End a write before it is done, and those after it if the table of ENDINGS says so."""
        if write.status is not PENDING:
            return  # it has ended with one before it
        ending = ENDINGS[status]
        if ending.reported_by_drain and write.listeners is None and self._unretrieved is None:
            self._unretrieved = error
        aborts = write.part_way and ending.aborts_those_after
        self.end_one(write, status, error)
        if aborts:
            self.abort_all()

    def abort_all(self) -> None:
        """End every write as ABORTED."""
        for write in self.writes:
            error = OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
            self.end_one(write, WriteStatus.ABORTED, error)

    def report(self, error: Exception | None) -> None:
        """Keep an error that there is no write to tell, for drain() to raise."""
        if self._unretrieved is None:
            self._unretrieved = error

    def retrieved(self, error: Exception | None) -> None:
        """Note that an error was retrieved, so that drain() doesn't raise it."""
        if self._unretrieved is error:
            self._unretrieved = None

    def raise_unretrieved(self) -> None:
        """Raise the first error that was not retrieved, once."""
        error, self._unretrieved = self._unretrieved, None
        if error is not None:
            try:
                raise error
            finally:
                # Its traceback has this frame, and those of the caller.
                del self, error
