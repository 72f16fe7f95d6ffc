"""The pipelines of a writer: what the bytes of each write go through, and which streams are open.

A pipeline is a callback of iob_write, normally a Filter with the filters after it. A writer may
have one for all its writes (the TLS of a connection), and a write may have its own above it (the
codings of one response), here called a codec. The bytes of a codec form one stream: no other bytes
may come between them, and the stream must be finished.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, final

from attrs import define, field

from iobatch._forms import compiled_methods
from iobatch._write import WriteCallback

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import EllipsisType

# None: bytes go to the socket.
Through = WriteCallback[Any] | None


def filter_of(through: Through) -> Any:
    """Return the callback if it can hold bytes that it took (a Filter), else None."""
    return through if hasattr(through, "drain") else None


def filters_of(through: Through) -> Iterator[Any]:
    """Yield the filters of a pipeline, the first one first."""
    each: Any = filter_of(through)
    while each is not None:
        yield each
        each = filter_of(getattr(each, "then", None))


def bytes_held(through: Through) -> int:
    """Return the number of bytes that the filters of a pipeline hold."""
    return sum(each.bytesleft for each in filters_of(through))


def bytes_passed_on(through: Through) -> int:
    """Return the number of bytes that have left a pipeline of filters; 0: it has no filter."""
    *_, last = (None, *filters_of(through))
    return 0 if last is None else last.bytessent


def check_through(through: object) -> None:
    """Refuse a pipeline that can't be called.

    Raises:
        TypeError: through is neither callable nor None.

    """
    if through is not None and not callable(through):
        raise TypeError(f"through must be callable, not {type(through).__name__!r}")


def _end_of(through: Through) -> Iterator[Any]:
    """Yield each callback of a pipeline, down to the one that sends."""
    each: Any = through
    while each is not None:
        yield each
        each = getattr(each, "then", None)


@final
@compiled_methods
@define(eq=False)
class Pipelines:
    """The pipelines of one writer's queued writes, and the streams that are open in them."""

    # The writer's own pipeline.
    through: Through
    # The codec whose stream was begun or queued, and whose end is not queued; or None.
    codec: Through = field(init=False, default=None)
    # The pipelines of pending writes and the number of those writes, by id: callbacks need not be
    # hashable.
    _queued: dict[int, tuple[Through, int]] = field(
        init=False, factory=dict[int, tuple[Through, int]]
    )
    # Filters that have taken bytes of this writer, and were not finished. By id, as above.
    _begun: dict[int, Any] = field(init=False, factory=dict[int, Any])
    # Filters that the end of a codec left open on purpose, by id.
    _left_open: dict[int, Any] = field(init=False, factory=dict[int, Any])

    def resolve(self, through: Through | EllipsisType) -> Through:
        """Return the pipeline for a write; `...` is the writer's own.

        Raises:
            TypeError: through is not callable.
            ValueError: through does not lead to the writer's own pipeline: its bytes would bypass
                TLS, for example.

        """
        if through is ... or through is self.through:
            return self.through
        check_through(through)
        if self.through is not None and all(each is not self.through for each in _end_of(through)):
            raise ValueError("through must lead to the writer's own `through`")
        return through

    def check_order(self, through: Through) -> None:
        """Refuse bytes that would come between those of an open codec.

        Raises:
            RuntimeError: the stream of another codec is open.

        """
        codec = self.codec
        if codec is not None and through is not codec:
            if id(codec) in self._begun or id(codec) in self._queued:
                if any(each.error is not None for each in filters_of(codec)):
                    raise RuntimeError("another codec has failed: its stream can't be ended")
                raise RuntimeError("another codec is open: post finish(through=...) for it first")
            self.codec = None

    def posted(self, through: Through, *, has_bytes: bool, finishes: bool) -> None:
        """Record that a write was queued. Its bytes open the stream of a codec."""
        _, count = self._queued.get(id(through), (None, 0))
        self._queued[id(through)] = (through, count + 1)
        if through is not self.through and (has_bytes or finishes):
            self.codec = None if finishes else through

    def took(self, through: Through) -> None:
        """Record that a pipeline has taken bytes."""
        if id(through) not in self._begun:
            for each in filters_of(through):
                self._begun[id(each)] = each

    def ended(self, through: Through, *, ends_codec: bool) -> None:
        """Record that a queued write has ended.

        Args:
            through: the pipeline of the write.
            ends_codec: the write was to end the stream of a codec, and has not.

        """
        _, count = self._queued.pop(id(through), (None, 0))
        if count > 1:
            self._queued[id(through)] = (through, count - 1)
        if ends_codec and id(through) in self._begun:
            self.codec = through

    def finished(self, through: Through, until: Any) -> None:
        """Record that the stream of a pipeline was ended, up to `until`."""
        for each in filters_of(through):
            if each is until:
                self._left_open[id(each)] = each
                break
            self._begun.pop(id(each), None)

    def held(self) -> int:
        """Return the number of bytes in the filters that queued and ended writes can reach."""
        reachable = {id(each): each for each in filters_of(self.through)}
        reachable.update(self._begun)
        for through, _ in self._queued.values():
            reachable.update((id(each), each) for each in filters_of(through))
        return sum(each.bytesleft for each in reachable.values())

    def check_finished(self) -> None:
        """Refuse to leave a stream without its end.

        Raises:
            RuntimeError: a filter has taken bytes, and was neither finished nor left open by the
                end of a codec.

        """
        for key, each in self._begun.items():
            if key not in self._left_open and each.error is None:
                raise RuntimeError(
                    "the stream of a filter was not ended: await finish() of the writer first"
                )
