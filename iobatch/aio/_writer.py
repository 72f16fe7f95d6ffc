"""BatchWriter: posts writes on the running event loop, and sends them in the order of posting."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable, Iterable
from contextvars import copy_context
from operator import index
from types import EllipsisType, TracebackType
from typing import Any, Final, Self, final

from iobatch._arguments import (
    Buffer,
    as_byte_view,
    check_flags,
    check_limit,
    check_nonnegative,
    check_timeout,
)
from iobatch._batch import IOBatch, core_of
from iobatch._forms import compiled_methods
from iobatch._send import SEND_LIMIT
from iobatch._target import check_more
from iobatch._write import WRITE_LIMIT
from iobatch.aio._budget import TurnBudget
from iobatch.aio._operation import DoneCallback, WriteOperation, check_callable, combine_callbacks
from iobatch.aio._pipelines import Pipelines, Through, check_through, filter_of, filters_of
from iobatch.aio._posted import DONE, PENDING, CancellationType, PostedWrite, WriteStatus
from iobatch.aio._queue import aborted
from iobatch.aio._sender import CLOSED, STATE_NAMES, WriteSender
from iobatch.filters import Filter  # noqa: TC001 # for typing.get_type_hints

BufferDoneCallback = Callable[["BatchWriter", Any, int], object]
# A number of seconds; None: no bound; `...`: the writer's value.
Seconds = float | EllipsisType | None
_NO_FLAGS: Final = 0
_NO_ANCDATA: Final = ()


@final
@compiled_methods
class BatchWriter:
    """Sends batches over a socket, in the order of posting, on the running asyncio or uvloop loop.

    The socket belongs to the caller, who may read from it at any time. Nothing else may write to
    it, and it must not belong to an asyncio transport. Close the writer before the socket: if the
    socket is closed under a writer that waits, the operations end as ABORTED within a second, and
    the writer is closed. A writer must be used in the thread of its loop only.

    Args:
        sock: a non-blocking socket. On a message socket (datagram, seqpacket) each write is one
            message, all or nothing, and an empty batch sends none.
        through: a callback of iob_write, normally a Filter, that all bytes go through; None: the
            socket itself. An operation is done when the filters have passed on all bytes that they
            held, or another callback has taken the operation's bytes. A writer does not read: if
            the filter or callback must read (a TLS handshake), the operation ends with
            SSLWantReadError.
        timeout: the most seconds from the posting of an operation until it is done; None: no bound.
        stall_timeout: the most seconds in which the writer sends no byte while an operation is
            pending; None: no bound. Bytes that a filter holds are not sent yet.
        limit: the most bytes to send in one turn of the loop, so that other tasks run; None:
            SEND_LIMIT, or WRITE_LIMIT with through (in iob_send and iob_write None is no limit).
        high_water: drain() waits while at least this number of bytes is pending.
        user_info: the user_info of operations that are posted without one.

    Attributes:
        sock: as above.
        timeout, stall_timeout, user_info: as above; they can be set, for later operations. An
            infinite timeout reads None.
        status: the final status of the operation whose write_buffer() callback was called last.

    Raises:
        ValueError: sock is blocking, or has a timeout; limit or high_water is below 1; a timeout is
            negative or NaN.
        TypeError: sock is not a socket object, or is a TLS socket and through is None; limit or
            high_water is not an int; a timeout is not a number of seconds.
        OverflowError: a timeout doesn't fit a float.
        RuntimeError: no loop is running.

    """

    __slots__ = (
        "__weakref__",
        "_sender",
        "_stall_timeout",
        "_timeout",
        "sock",
        "status",
        "user_info",
    )

    sock: socket.socket
    user_info: Any
    status: WriteStatus

    def __init__(
        self,
        sock: socket.socket,
        *,
        through: Through = None,
        timeout: float | None = None,
        stall_timeout: float | None = None,
        limit: int | None = None,
        high_water: int = 64 * 1024,
        user_info: Any = None,
    ) -> None:
        """Create a writer with an empty queue."""
        loop = asyncio.get_running_loop()
        if not isinstance(sock, socket.socket):
            raise TypeError(f"sock must be a socket object, not {type(sock).__name__!r}")
        if sock.gettimeout() != 0:
            raise ValueError("sock must be non-blocking")
        if through is None and hasattr(sock, "do_handshake"):
            raise TypeError("a TLS socket needs through=ssl.SSLSocket.send")
        check_through(through)
        if index(high_water) < 1:
            raise ValueError(f"high_water must be at least 1, not {high_water}")
        if limit is None:
            limit = SEND_LIMIT if through is None else WRITE_LIMIT
        self.sock = sock
        self._timeout = check_timeout(timeout)
        self._stall_timeout = check_timeout(stall_timeout)
        self.user_info = user_info
        self.status = PENDING
        self._sender = WriteSender(
            loop, sock, Pipelines(through), TurnBudget(loop, check_limit(limit)), high_water
        )

    @property
    def timeout(self) -> float | None:
        """The most seconds from the posting of an operation until it is done; None: no bound."""
        return self._timeout

    @timeout.setter
    def timeout(self, seconds: float | None) -> None:
        self._timeout = check_timeout(seconds)

    @property
    def stall_timeout(self) -> float | None:
        """The most seconds in which the writer sends no byte; None: no bound."""
        return self._stall_timeout

    @stall_timeout.setter
    def stall_timeout(self, seconds: float | None) -> None:
        self._stall_timeout = check_timeout(seconds)

    @property
    def pending(self) -> int:
        """The number of bytes that were posted and are not sent yet.

        It includes the bytes in each filter that the queued writes go through, or that has taken
        bytes and is not finished.
        """
        return self._sender.pending

    def __repr__(self) -> str:
        sender = self._sender
        return (
            f"<{type(self).__name__} on descriptor {self.sock.fileno()}: "
            f"{STATE_NAMES[sender.state]}, {len(sender.queue.writes)} operations, "
            f"{sender.pending} bytes pending>"
        )

    def write(
        self,
        batch: IOBatch,
        *,
        flags: int = 0,
        through: Through | EllipsisType = ...,
        exactly: int | None = None,
        ancdata: Iterable[tuple[int, int, Buffer]] = _NO_ANCDATA,
        address: Any = None,
        timeout: Seconds = ...,
        stall_timeout: Seconds = ...,
        on_complete: DoneCallback | None = None,
        on_error: DoneCallback | None = None,
        user_info: Any = ...,
    ) -> WriteOperation:
        """Post a write of a whole batch, and return at once.

        The writer takes the entries of the batch, as IOBatch.extend does: the batch is then empty,
        and can be filled again. Buffers are not copied; they must not change until they are sent.
        Writes are sent in the order of posting. Bytes that the socket takes at once are sent inside
        this call, so the operation may be done when write() returns; its callbacks still run from
        the loop. A file that is not in the page cache is first read by a thread, while the loop
        goes on.

        An operation that ends before its first byte was sent, or may have been sent, leaves the
        queue, and the operations after it go on. An operation that ends after that and before its
        last byte ends all operations after it as ABORTED: nothing may follow a truncated body.
        Operations that are posted later are ABORTED, too, until the unsent bytes of the first one
        were posted again, or dropped by reset() of its batch. The unsent bytes of each operation
        are in its batch.

        Args:
            batch: the batch to send.
            flags: MSG_* flags for every send(2) of the operation; not with a pipeline.
            through: the pipeline of this write, such as the codings of one response; `...`: the
                writer's; None: the socket itself. It must lead to the writer's. All bytes through a
                Filter of its own are one stream: end it by finish(through=...) before bytes of
                another pipeline.
            exactly: the number of bytes to send, counted before the filters; the rest stays in the
                operation's batch. Not for messages.
            ancdata: the ancillary data of one message, as for sendmsg(2).
            address: the destination of one message; None: the connected one.
            timeout: the most seconds until the operation is done; None: no bound; `...`: the
                writer's.
            stall_timeout: the most seconds in which the writer sends no byte; None: no bound;
                `...`: the writer's.
            on_complete: called with the operation when it has ended: as DONE only, if there is an
                on_error, else in any way.
            on_error: called with the operation when it has ended in any way except DONE.
            user_info: the operation's user_info; `...`: the writer's.

        Returns:
            The operation, which can be awaited.

        Raises:
            OSError: ECANCELED: the writer is closed, by close(), by a cancellation as TERMINAL, or
                because its socket was closed. EOPNOTSUPP: for MSG_MORE, as iob_sendmsg raises it.
            ValueError: exactly is negative, more than the batch has, less than the offer that a
                callback must be given again (see iob_write), or given for a message; a timeout is
                negative or NaN; flags are given with a pipeline; through does not lead to the
                writer's own; ancdata or address is given for a stream.
            TypeError: batch is not an IOBatch; through is not callable; ancdata is malformed; a
                timeout is not a number of seconds; a callback is not callable, or is a coroutine
                function.
            OverflowError: flags don't fit a C int; a timeout doesn't fit a float.
            RuntimeError: a call on the batch is in progress, as during its hooks and callbacks; the
                stream of another Filter that was given as through is open; an operation that ended
                early has left an offer that a callback must be given again.
            Nothing was sent, and the batch and the writer are unchanged.

        Source: WSASend; Boost.Asio, async_write.
        """
        if (
            timeout is ...
            and stall_timeout is ...
            and through is ...
            and exactly is None
            and ancdata is _NO_ANCDATA
            and address is None
            and on_complete is on_error is None
            and flags is _NO_FLAGS
            and type(batch) is IOBatch
        ):
            operation = self._sender.send_at_once(
                batch,
                self.user_info if user_info is ... else user_info,
                self._timeout,
                self._stall_timeout,
            )
            if operation is not None:
                return operation
        return self._post(
            batch,
            flags=flags,
            through=through,
            exactly=exactly,
            ancdata=ancdata,
            address=address,
            timeout=timeout,
            stall_timeout=stall_timeout,
            done_callback=combine_callbacks(on_complete, on_error),
            user_info=user_info,
        )

    def write_some(
        self,
        batch: IOBatch,
        *,
        flags: int = 0,
        through: Through | EllipsisType = ...,
        timeout: Seconds = ...,
        stall_timeout: Seconds = ...,
        on_complete: DoneCallback | None = None,
        on_error: DoneCallback | None = None,
        user_info: Any = ...,
    ) -> WriteOperation:
        """Post a write that is done when some bytes of the batch were sent.

        The operation's bytes_transferred is their number, and its batch has the rest. The
        operations that are posted after it follow at once. Args and Raises: as for write().

        Returns:
            The operation, which can be awaited.

        Source: Boost.Asio, async_write_some.
        """
        return self._post(
            batch,
            some=True,
            flags=flags,
            through=through,
            timeout=timeout,
            stall_timeout=stall_timeout,
            done_callback=combine_callbacks(on_complete, on_error),
            user_info=user_info,
        )

    def write_buffer(
        self,
        data: Buffer,
        callback: BufferDoneCallback,
        *,
        start: int = 0,
        end: int | None = None,
        timeout: Seconds = ...,
        error_callback: BufferDoneCallback | None = None,
        user_info: Any = ...,
    ) -> WriteOperation:
        """Post a write of data[start:end].

        When the operation has ended, the loop calls callback(writer, data, nbytes) with the number
        of bytes that were sent: on success, on a timeout, and without error_callback in every other
        case too. During that call the writer's `status` is the operation's.

        Args:
            data: a C-contiguous buffer; not copied: it must not change until it is sent.
            callback: as above.
            start: the offset of the first byte, in bytes whatever the item size.
            end: the offset after the last byte, in bytes; None: the end of data.
            timeout: as for write(), but kept for later operations.
            error_callback: called instead of callback if the operation failed, was cancelled or was
                aborted.
            user_info: as for write(), but kept for later operations.

        Returns:
            The operation, which can be awaited, too.

        Raises:
            OSError: as for write().
            ValueError: as for write(); or start or end is outside data, or end is before start.
            TypeError: data does not support the buffer protocol; a callback is not callable, or is
                a coroutine function.
            BufferError: data is not C-contiguous.

        Source: LispWorks, async-io-state-write-buffer.
        """
        if callback is None:
            raise TypeError("callback must not be None")
        check_callable(callback)
        check_callable(error_callback)

        def notify(operation: WriteOperation) -> None:
            self.status = operation.status
            if error_callback is None or self.status in (DONE, WriteStatus.TIMEOUT):
                callback(self, data, operation.bytes_transferred)
            else:
                error_callback(self, data, operation.bytes_transferred)

        view = memoryview(as_byte_view(data))
        size = len(view)
        end = size if end is None else index(end)
        if not 0 <= index(start) <= end <= size:
            raise ValueError(f"0 <= start <= end <= {size} is required, not {start} and {end}")
        batch = IOBatch()
        batch.addbuf(view[start:end])
        operation = self._post(batch, timeout=timeout, done_callback=notify, user_info=user_info)
        if timeout is not ...:
            self.timeout = timeout
        self.user_info = operation.user_info
        return operation

    def finish(
        self, *, through: Through | EllipsisType = ..., until: Filter | None = None
    ) -> WriteOperation:
        """Post the end of the stream of a pipeline, such as the close_notify of TLS.

        The operation has no bytes of its own. It is done when the writes before it have ended and
        the last output of the filters was sent. The filters take no writes after it. Without a
        filter there is no stream to end, and the operation is done in its turn.

        Args:
            through: the pipeline whose stream ends; `...`: the writer's.
            until: a filter of that pipeline. It and the filters after it stay open: for example,
                the TLS of a connection, after the codings of one response.

        Returns:
            The operation, which can be awaited.

        Raises:
            OSError, TypeError, RuntimeError: as for write().
            ValueError: as for write(); or until is not in the pipeline.

        """
        return self._post(IOBatch(), through=through, finishes=True, until=until)

    def flush(self, *, through: Through | EllipsisType = ...) -> WriteOperation:
        """Post a push of what the filters hold: Filter.drain, in the order of posting.

        Await it after each receive() of the TLS handshake, and after one that has raised: it sends
        the messages that TLS makes by itself, such as those of the handshake or an alert. The
        operation has no bytes of its own. It is done when they, and the writes before it, are sent.
        It ends no stream: bytes inside a compressor stay there.

        Args:
            through: the pipeline to push; `...`: the writer's.

        Returns:
            The operation, which can be awaited.

        Raises:
            OSError, TypeError, ValueError: as for write().

        """
        return self._post(IOBatch(), through=through)

    async def drain(self) -> None:
        """Wait until fewer than high_water bytes, or no operations, are pending.

        It sends nothing by itself: flush() posts a push of what the filters hold.

        Raises:
            Exception: the first unretrieved error or timeout of an operation, once. It is
                unretrieved if the operation had no callback of any kind, and neither await nor
                exception() has reported it. So code that only posts and drains still sees it. The
                error of an ABORTED operation is never raised here.

        """
        sender = self._sender
        while sender.queue.order and sender.pending >= sender.high_water:
            await sender.wait_for_change()
        sender.queue.raise_unretrieved()

    def cancel(self, kind: CancellationType = CancellationType.PARTIAL) -> bool:
        """Cancel all pending operations, in their order.

        Args:
            kind: TERMINAL: also close the writer. TOTAL: cancel only operations of which no byte
                was sent, or may have been sent; the others go on. See CancellationType.

        Returns:
            Whether operations were pending and all of them were cancelled.

        Raises:
            RuntimeError: the writer is sending, as in a hook of a batch, or in `through`.
            ValueError: kind is not a CancellationType.

        """
        return self._sender.cancel_all(CancellationType(kind))

    def close(self) -> None:
        """End all pending operations as ABORTED, and refuse further ones.

        Bytes that a filter holds are not sent: await finish() first. The socket stays open. More
        calls do nothing.

        Raises:
            RuntimeError: the writer is sending, as in a hook of a batch, or in `through`.

        """
        self._sender.check_not_busy()
        self._sender.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the writer. First wait until no operation is pending, unless the block raised.

        Raises:
            Exception: as for drain().
            RuntimeError: a filter has taken bytes, and was neither finished nor left open by
                finish(until=...): its stream would be truncated. Not after close().

        """
        sender = self._sender
        try:
            while exc_type is None and sender.queue.order:
                await sender.wait_for_change()
            was_closed = sender.state == CLOSED
        finally:
            sender.close()
        if exc_type is None:
            sender.queue.raise_unretrieved()
            if not was_closed:
                sender.pipelines.check_finished()

    def _post(
        self,
        batch: IOBatch,
        *,
        flags: int = 0,
        through: Through | EllipsisType = ...,
        exactly: int | None = None,
        ancdata: Iterable[tuple[int, int, Buffer]] = (),
        address: Any = None,
        some: bool = False,
        finishes: bool = False,
        until: Filter | None = None,
        timeout: Seconds = ...,
        stall_timeout: Seconds = ...,
        done_callback: DoneCallback | None = None,
        user_info: Any = ...,
    ) -> WriteOperation:
        """Check the arguments, and post an operation."""
        sender = self._sender
        if sender.state == CLOSED:
            raise OSError(errno.ECANCELED, "the writer is closed")
        if not isinstance(batch, IOBatch):
            raise TypeError(f"batch must be an IOBatch, not {type(batch).__name__!r}")
        flags = check_flags(flags)
        pipelines = sender.pipelines
        pipeline = self._resolve_pipeline(through, flags, until)
        if exactly is not None:
            exactly = self._check_exactly(exactly, batch)
        control = _copy_ancdata(ancdata)
        is_message = sender.sends_messages and pipeline is None
        if (control or address is not None) and not is_message:
            raise ValueError("ancdata and address are for messages")
        timeout = self._timeout if timeout is ... else check_timeout(timeout)
        stall_timeout = (
            self._stall_timeout if stall_timeout is ... else check_timeout(stall_timeout)
        )
        truncated = None
        if batch or finishes:
            pipelines.check_order(pipeline)
            sender.check_owed_offer(batch, pipeline)
            truncated = sender.truncated()
        write = PostedWrite(sender, self.user_info if user_info is ... else user_info)
        write.flags = flags
        write.ancdata = control
        write.address = address
        write.through = pipeline
        write.filter = filter_of(pipeline)
        write.finishes = finishes
        write.until = until
        write.ends_codec = finishes and pipeline is not pipelines.through
        write.resumes = batch is truncated
        if pipeline is not None and write.filter is None:
            write.offer_pending = core_of(batch).pinned > 0
        write.operation = operation = WriteOperation(write)
        if done_callback is not None:
            write.add_done_callback((done_callback, copy_context()))
        write.batch = rest = IOBatch()
        rest.extend(batch)
        try:
            size = rest.bytesleft if exactly is None else exactly
            write.max_bytes = size
            write.complete_at = min(1, size) if some else size
            if not (truncated is None or write.resumes):
                write.end(WriteStatus.ABORTED, aborted())
            else:
                sender.post(write, timeout, stall_timeout)
        except BaseException:
            # A signal handler's exception or a MemoryError: the entries may be sent in part, and
            # nothing may follow them.
            sender.close()
            raise
        return operation

    def _resolve_pipeline(
        self, through: Through | EllipsisType, flags: int, until: Filter | None
    ) -> Through:
        """Return the pipeline for a write, after the checks that depend on it."""
        pipeline = self._sender.pipelines.resolve(through)
        if flags:
            if pipeline is not None:
                raise ValueError("flags must be 0 when through is given")
            check_more(self.sock, flags)
        if until is not None and all(each is not until for each in filters_of(pipeline)):
            raise ValueError("until must be a filter of the pipeline")
        return pipeline

    def _check_exactly(self, exactly: int, batch: IOBatch) -> int:
        if self._sender.sends_messages:
            raise ValueError("exactly must be None for a message socket")
        exactly = check_nonnegative(exactly, "exactly")
        if exactly > batch.bytesleft:
            raise ValueError(
                f"exactly must be at most bytesleft ({batch.bytesleft}), not {exactly}"
            )
        pinned = core_of(batch).pinned
        if exactly < pinned:
            raise ValueError(
                f"exactly must be at least the length to offer again ({pinned}), not {exactly}"
            )
        return exactly


def _copy_ancdata(ancdata: Iterable[tuple[int, int, Buffer]]) -> list[tuple[int, int, bytes]]:
    """Return a copy of ancillary data. It is small, and the caller may change it.

    Raises:
        TypeError: ancdata has other items than tuples of two ints and a buffer.

    """
    try:
        return [
            (index(level), index(kind), bytes(memoryview(data))) for level, kind, data in ancdata
        ]
    except ValueError as exc:  # another number of items
        raise TypeError(f"ancdata must have tuples of two ints and a buffer: {exc}") from None
