"""IOBatch: the public API of a batch. It checks arguments; its BatchCore does the rest."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NoReturn, Self

from iobatch._arguments import (
    MAX_BYTES,
    MAX_INT,
    Buffer,
    HasFileno,
    OpenFile,
    as_byte_view,
    as_byte_views,
    check_nonnegative,
    fileno,
)
from iobatch._core import COUNT_UNKNOWN, SENDING, TOO_LONG, BatchCore
from iobatch._entries import Release, describe
from iobatch._errors import copy_to_raise, suppress_call_error
from iobatch._files import file_size, is_path, open_file
from iobatch._forms import compiled_methods

if TYPE_CHECKING:
    from iobatch._entries import Releases

_fadvise = getattr(os, "posix_fadvise", None)
_ONLY_BYTES: Final = frozenset((bytes,))


@compiled_methods
class IOBatch:
    """An ordered list of byte buffers and file ranges that are still to be sent.

    Add entries, then call iob_send or iob_write until the batch is empty, or iob_sendall once.
    Buffers are held, not copied: the caller must not change a buffer until it is released.

    An entry is released as soon as its last byte is accepted, or by reset(), or when the batch is
    garbage-collected. At the same time its on_release runs, and its file is closed if the batch
    owns the file. on_release is called without arguments, exactly once, after the accounting. It
    may add entries, except to a batch that is being garbage-collected. It must not send or reset
    this batch, or move its entries (RuntimeError). It must not raise an exception:
    sys.unraisablehook reports the exception, except a KeyboardInterrupt, which propagates.

    If a call is refused, the exception is raised before the batch changes (addfile_close() still
    closes the file). A batch is true while bytes are left. As a context manager it resets itself at
    the end. One thread at a time may use a batch.

    Source: libowfat, the iob_* functions.
    """

    __slots__ = ("__weakref__", "_core")

    def __init__(self) -> None:
        """Make an empty batch."""
        self._core = BatchCore()

    @property
    def bytesleft(self) -> int:
        """The number of bytes that are still to be sent."""
        return self._core.left

    @property
    def bytessent(self) -> int:
        """The number of bytes that were sent since creation or reset()."""
        return self._core.sent

    @property
    def error(self) -> OSError | None:
        """The permanent error, or None.

        With an error, iob_send, iob_sendmsg and iob_write return IOB_ERROR until reset().
        """
        core = self._core
        if core.activity == SENDING:
            return None  # the stored COUNT_UNKNOWN is not an error yet
        if core.error is COUNT_UNKNOWN:
            # A copy for each batch, since the caller may raise it.
            core.error = copy_to_raise(COUNT_UNKNOWN)
        return core.error

    @property
    def wants(self) -> int:
        """The event to wait for after IOB_AGAIN.

        selectors.EVENT_WRITE, or EVENT_READ if TLS must read first.
        """
        return self._core.wants

    def __bool__(self) -> bool:
        return self._core.left > 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.reset()

    def __repr__(self) -> str:
        core = self._core
        parts = [f"{core.left} bytes left", f"{core.sent} sent"]
        entries = [entry for entry in core.snapshot() if type(entry) is not Release]
        if entries:
            parts.append(f"{len(entries)} entries")
            parts.append(f"the first: {describe(entries[0])}")
        if self.error is not None:
            parts.append(repr(self.error))
        return f"<IOBatch {', '.join(parts)}>"

    def __del__(self) -> None:
        # There is no core if __init__ refused an argument.
        core = getattr(self, "_core", None)
        if core is not None and (core.left or core.release_pending):
            try:
                if any(type(entry) is Release and entry.closes for entry in core.snapshot()):
                    warnings.warn(f"unclosed file in {self!r}", ResourceWarning, 2, self)
            finally:  # also if the warning is raised as an error
                core.finalize()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a batch can be neither copied nor pickled")

    # Adding

    def addbuf(self, data: Buffer, *, on_release: Callable[[], object] | None = None) -> None:
        """Add a buffer, which is held and not copied.

        Args:
            data: an object with a C-contiguous buffer. All bytes of its items are sent. It must not
                change until it is released; until then a bytearray can't be resized.
            on_release: called once, without arguments, when the batch has released data.

        Raises:
            TypeError: data has no buffer (for a str use adds), or on_release is not callable.
            BufferError: data is not C-contiguous.
            ValueError: data is a memoryview that was released.
            OverflowError: more than 2**63 - 1 bytes would be left.

        """
        if type(data) is bytes and on_release is None:
            # A copy of BatchCore.append: most entries are added here, and the call alone would be a
            # third of the cost.
            core = self._core
            left = len(data) + core.left
            if left > MAX_BYTES:
                raise OverflowError(TOO_LONG)
            if data:
                core.left = left
                core.queue.append(data)
        else:
            releases = _make_releases(on_release)
            entry = as_byte_view(data)
            self._core.append(entry, len(entry), releases)

    def addbufs(self, buffers: Iterable[Buffer]) -> None:
        """Add buffers in their order, all or none of them, as addbuf() adds each one.

        This call takes a fraction of the time of single calls. If `buffers` is an iterator that
        adds entries to the batch, those come first.

        Args:
            buffers: any iterable of buffers.

        Raises:
            TypeError, BufferError, ValueError: as for addbuf, with the position of the buffer; or
                buffers is not iterable.
            OverflowError: as for addbuf.
            Exception: any exception of the iterator.

        Source: Boost.Asio, ConstBufferSequence; WSASend, lpBuffers.
        """
        # A list first: other code runs in the iterator, and must not find the batch half changed.
        entries: list[Any] = list(buffers)
        only_bytes = _ONLY_BYTES.issuperset(map(type, entries))
        entries = list(filter(None, entries if only_bytes else as_byte_views(entries)))
        views = 0 if only_bytes else list(map(type, entries)).count(memoryview)
        self._core.append_buffers(entries, views)

    def adds(self, text: str, encoding: str = "utf-8") -> None:
        """Add a str, encoded.

        Args:
            text: the str.
            encoding: the name of its encoding.

        Raises:
            TypeError: text is not a str.
            UnicodeEncodeError: text can't be encoded.
            LookupError: the encoding is unknown.
            OverflowError: as for addbuf.

        """
        if not isinstance(text, str):
            raise TypeError(f"text must be a str, not {type(text).__name__!r}")
        self.addbuf(text.encode(encoding))

    def addfile(
        self,
        file: int | str | bytes | os.PathLike[str] | os.PathLike[bytes] | HasFileno,
        offset: int = 0,
        count: int | None = None,
        *,
        on_release: Callable[[], object] | None = None,
    ) -> None:
        """Add a range of a file, given as a descriptor, as an object with fileno() or as a path.

        A descriptor and an object are borrowed: they must stay open until the entry is released,
        and the batch holds a reference to the object until then. A path is opened by this call,
        which waits neither for the writer of a FIFO nor for the end of a lease; the batch owns the
        file and closes it when the entry is released. The position of the file is neither used nor
        changed.

        The descriptor of an object counts, not its read() or write(): the descriptor of
        gzip.open() gives the compressed bytes, and bytes that a buffered writer holds are not in
        the file before its flush().

        Args:
            file: an int, an object with fileno(), or a path: a str, bytes or a path object.
            offset: the start of the range in the file, in bytes.
            count: the length of the range in bytes; None: up to the current end of the file. If the
                file is shorter when it is sent, sending fails with TruncatedFileError.
            on_release: called once, without arguments, when the batch has released the range.

        Raises:
            TypeError: file, offset, count or on_release has a wrong type.
            ValueError: offset, count or the descriptor is negative; count is None and the end of
                the file is unknown, because it is not a regular file or because its reported size
                is wrong (as in /proc and /sys); or a path leads to a file without offsets, such as
                a FIFO.
            IsADirectoryError: file is a directory. If count is given, a descriptor or an object is
                not checked here, and sending reports the error.
            OSError: the file can't be opened, or its size can't be determined. EBUSY: another
                process holds a lease on it.
            OverflowError: the range would end past 2**63 - 1; or the descriptor does not fit a C
                int; or as for addbuf.

        Source: open(2); fcntl(2), F_SETLEASE.
        """
        if type(file) is int and type(offset) is int and type(count) is int and on_release is None:
            # A copy of BatchCore.append, as in addbuf: a server adds a range for each response.
            core = self._core
            left = core.left + count
            if (
                count
                and (file | offset | count) >= 0
                and left + offset <= MAX_BYTES
                and file <= MAX_INT
            ):
                core.left = left
                core.ranges += 1
                core.queue.append((file, offset, count, None, False))
                return
        releases = _make_releases(on_release)
        if is_path(file):
            self._add_owned(open_file(file), offset, count, releases)
        else:
            self._add_range(file, offset, count, releases)

    def addfile_close(
        self,
        file: int | str | bytes | os.PathLike[str] | os.PathLike[bytes] | OpenFile,
        offset: int = 0,
        count: int | None = None,
    ) -> None:
        """Add a range of a file, and take ownership of the file.

        The batch closes the file when the entry is released, or at once if the range is empty or
        this call raises an exception. An int is closed by os.close, an object by its close().

        Args and Raises: as for addfile, without on_release. Also TypeError for an object without
        close().
        """
        if is_path(file):
            self.addfile(file, offset, count)
        else:
            self._add_owned(file, offset, count)

    def extend(self, other: IOBatch) -> None:
        """Move all entries of another batch to the end of this one.

        The other batch ends empty, and its error stays with it. So extend() also recovers the
        entries of a failed batch. If the number of bytes that the failed batch has sent is unknown
        (see iobatch(7)), some of the moved bytes may have been sent already.

        If a callback of iob_write has returned "again" for the other batch, its next offer must
        start with the same bytes. This batch must be empty then, and the offer moves with them.

        Args:
            other: the batch to empty.

        Raises:
            TypeError: other is not an IOBatch.
            ValueError: other is this batch.
            RuntimeError: a call on other is in progress, as during its hooks and callbacks; or a
                callback has returned "again" for other, and this batch is not empty or a call on it
                is in progress.
            OverflowError: as for addbuf.

        """
        if not isinstance(other, IOBatch):
            raise TypeError(f"other must be an IOBatch, not {type(other).__name__!r}")
        if other is self:
            raise ValueError("a batch can't extend itself")
        self._core.extend(core_of(other))

    def prepend(self, data: Buffer, *, on_release: Callable[[], object] | None = None) -> None:
        """Add a buffer before the head of the batch. Args and Raises: as for addbuf.

        Raises:
            RuntimeError: a callback of iob_write has returned "again", and its next offer must
                start with the same bytes; or bytes of the batch are being sent.

        """
        releases = _make_releases(on_release)
        self._core.prepend(as_byte_view(data), releases)

    # Managing

    def raise_for_error(self) -> None:
        """Raise a copy of `error`, if there is one.

        A loop that sends calls this at its end.

        Raises:
            OSError: the copy.

        """
        error = self.error
        if error is not None:
            raise copy_to_raise(error)

    def prefetch(self, nbytes: int) -> None:
        """Ask the kernel to read the next file ranges ahead.

        The advice starts at the head of the batch and continues from range to range. Buffers are
        skipped and not counted. If the system or the file does not support the advice, this call
        does nothing.

        Args:
            nbytes: the number of file bytes to read ahead.

        Raises:
            TypeError: nbytes is not an int.
            ValueError: nbytes is negative.

        Source: posix_fadvise(2), POSIX_FADV_WILLNEED.
        """
        nbytes = check_nonnegative(nbytes, "nbytes")
        if _fadvise is None:
            return
        for entry in self._core.snapshot():
            if type(entry) is tuple and nbytes:
                fd, offset, count, _, _ = entry
                # An error of posix_fadvise is ignored: sending reports a fault of the descriptor.
                with suppress_call_error(OSError):
                    _fadvise(fd, offset, min(count, nbytes), os.POSIX_FADV_WILLNEED)
                nbytes -= min(count, nbytes)

    def reset(self) -> None:
        """Release all entries, close owned files, and clear error and counts.

        The batch can be used again. Entries that hooks add during this call stay in the batch. If a
        callback has returned "again", it may hold the bytes that it was offered (OpenSSL does), so
        its connection must be closed.

        Raises:
            RuntimeError: a call on the batch is in progress, as during its hooks and callbacks.

        """
        self._core.clear()

    # The methods below are private to this class.

    def _add_range(self, file: object, offset: int, count: int | None, releases: Releases) -> None:
        fd = fileno(file)
        offset = check_nonnegative(offset, "offset")
        if count is None:
            count = max(0, file_size(fd) - offset)
        else:
            count = check_nonnegative(count, "count")
        if offset + count > MAX_BYTES:
            raise OverflowError(TOO_LONG)
        self._core.append((fd, offset, count, file, False), count, releases)

    def _add_owned(
        self, file: object, offset: int, count: int | None, releases: Releases = ()
    ) -> None:
        release: Release | None = None
        try:
            release = _make_close_release(file)
            self._add_range(file, offset, count, (release, *releases))
        except BaseException:
            if release is None or release not in self._core.snapshot():  # else the batch closes it
                # Suppress a failed close: the caller needs the first error.
                with suppress_call_error(OSError, TypeError):
                    close = release or _make_close_release(file)
                    close()
            raise


def _make_close_release(file: object) -> Release:
    close = partial(os.close, file) if isinstance(file, int) else getattr(file, "close", None)
    if not callable(close):
        raise TypeError(f"file must be a descriptor or have close(), not {type(file).__name__!r}")
    return Release(close, closes=True)


def _make_releases(on_release: Callable[[], object] | None) -> Releases:
    if on_release is None:
        return ()
    if not callable(on_release):
        raise TypeError(f"on_release must be callable, not {type(on_release).__name__!r}")
    return (Release(on_release),)


def core_of(batch: IOBatch) -> BatchCore:
    """Return the core of a batch. The other modules use this function, not the attribute.

    Raises:
        TypeError: batch is not an IOBatch.

    """
    try:
        # This function is the one friend of the class.
        return batch._core  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
    except AttributeError:
        if isinstance(batch, IOBatch):
            raise  # the __init__ of a subclass has not called that of IOBatch
        raise TypeError(f"batch must be an IOBatch, not {type(batch).__name__!r}") from None
