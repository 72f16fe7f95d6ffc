"""The batch: what is left to send, in order. Accounting only; no socket is ever seen here."""

from __future__ import annotations

import os
import warnings
from collections import deque
from contextlib import suppress
from functools import partial
from io import FileIO
from selectors import EVENT_WRITE
from typing import TYPE_CHECKING, Final, NoReturn

from attrs import define

from iobatch._entries import (
    MAX_BYTES,
    MAX_FD,
    Entry,
    Release,
    Releases,
    describe,
    file_size,
    fileno,
    flatten,
    hooks,
    natural,
    report_unraisable,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Self

    from typing_extensions import Buffer

    from iobatch._entries import HasFileno, OpenFile

IOB_DONE: Final = 0
IOB_AGAIN: Final = -1
IOB_ERROR: Final = -3

# What a batch is doing: nothing; its head is with a system call or callback, so that nothing may
# get in front of it; its hooks run, behind the accounting.
IDLE: Final = 0
SENDING: Final = 1
RELEASING: Final = 2

TOO_LONG: Final = "neither a batch nor a file has more than 2**63 - 1 bytes"

_fadvise = getattr(os, "posix_fadvise", None)


@define(eq=False, repr=False, init=False)
class IOBatch:
    """An ordered list of byte buffers and file ranges that are still to be written.

    Add pieces, then call iob_send, iob_write or iob_sendall until the batch is empty. Buffers are
    held, not copied: the caller must not change them until they are released. An entry is released
    as soon as its last byte was accepted, or by reset(), or when the batch is collected; that is
    the moment at which its on_release runs and an owned file is closed. on_release is called
    without arguments, exactly once, after the accounting; it may add entries (not to a batch that
    is being collected), and may not send or reset this batch (RuntimeError). It must not raise: if
    it does, sys.unraisablehook reports it.

    What is refused raises before anything changes. One batch belongs to one thread at a time.
    """

    _queue: deque[Entry]
    _left: int
    _sent: int
    _error: OSError | None
    _wants: int
    # A callback that said "again" was offered the first so many bytes of the head, which is a
    # buffer then, and must be offered just these again (SSL_write(3): "bad write retry").
    _pin: int
    # IDLE, SENDING or RELEASING.
    _busy: int
    # There is nothing but `bytes` in the queue: all of it can be joined.
    _joinable: bool

    def __init__(self) -> None:
        """Make an empty batch."""
        # A generated __init__, which looks every default up, takes three times as long.
        self._queue = deque()
        self._left = self._sent = self._pin = 0
        self._error = None
        self._wants = EVENT_WRITE
        self._busy = IDLE
        self._joinable = True

    @property
    def bytesleft(self) -> int:
        """The bytes that are still to be written."""
        return self._left

    @property
    def bytessent(self) -> int:
        """The bytes that were written since creation or reset()."""
        return self._sent

    @property
    def error(self) -> OSError | None:
        """The permanent error: why calls return IOB_ERROR, until reset()."""
        return self._error

    @property
    def wants(self) -> int:
        """What to wait for after IOB_AGAIN: selectors.EVENT_WRITE, or EVENT_READ (TLS)."""
        return self._wants

    def __bool__(self) -> bool:
        return self._left > 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.reset()

    def __repr__(self) -> str:
        parts = [f"{self._left} bytes left", f"{self._sent} sent"]
        if self._queue:
            parts.append(f"{sum(type(entry) is not Release for entry in self._queue)} entries")
            parts.append(f"the first: {describe(self._queue[0])}")
        if self._error is not None:
            parts.append(repr(self._error))
        return f"<IOBatch {', '.join(parts)}>"

    def __del__(self) -> None:
        # There is no queue where __init__ was given an argument.
        queue = getattr(self, "_queue", None)
        if queue:
            try:
                if any(type(entry) is Release and entry.closes for entry in queue):
                    warnings.warn(f"unclosed file in {self!r}", ResourceWarning, 2, self)
            finally:  # also where warnings are errors
                # Full, so that hooks can't add to what is never going to be sent.
                self._drop(left=MAX_BYTES)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a batch can be neither copied nor pickled")

    # Adding

    def addbuf(self, data: Buffer, *, on_release: Callable[[], object] | None = None) -> None:
        """Add a buffer: any object with a C-contiguous buffer, held and not copied.

        Args:
            data: the bytes; of an array, all bytes of its items.
            on_release: called once, without arguments, when the batch needs data no longer.

        Raises:
            TypeError: data has no buffer (a str: use adds), or on_release can't be called.
            BufferError: data is not C-contiguous.
            OverflowError: more than 2**63 - 1 bytes would be left.

        """
        if type(data) is bytes and on_release is None:
            # Most of what is sent comes this way, so it takes no call.
            left = len(data) + self._left
            if left > MAX_BYTES:
                raise OverflowError(TOO_LONG)
            if data:
                self._left = left
                self._queue.append(data)
        else:
            releases = hooks(on_release)
            entry = flatten(data)
            left = self._sum(len(entry))
            if entry:
                self._left = left
                self._joinable = False
                self._queue.extend((entry, *releases))
            else:
                self._release_empty(entry, releases)

    def adds(self, text: str, encoding: str = "utf-8") -> None:
        """Add a str, encoded.

        Raises:
            TypeError: text is no str.
            UnicodeEncodeError: text can't be encoded.
            LookupError: there is no such encoding.
            OverflowError: as for addbuf.

        """
        if not isinstance(text, str):
            raise TypeError(f"a str is required, not {type(text).__name__!r}")
        self.addbuf(text.encode(encoding))

    def addfile(
        self,
        file: int | str | os.PathLike[str] | HasFileno,
        offset: int = 0,
        count: int | None = None,
        *,
        on_release: Callable[[], object] | None = None,
    ) -> None:
        """Add a range of a file, by its descriptor, by an object that has one, or by its path.

        A descriptor and an object with fileno() are borrowed: they must stay open until released;
        the object is referenced as long. A path is opened here, owned, and closed when released.
        The file's own position is neither used nor moved.

        Args:
            file: an int, an object with fileno(), a str or a path object.
            offset: where in the file the range starts, in bytes.
            count: its length in bytes; None: up to the end of the file as of now. A file that
                turns out to be shorter is an error when it is sent (TruncatedFileError).
            on_release: called once, without arguments, when the batch needs the file no longer.

        Raises:
            TypeError: file, offset, count or on_release is of no such kind.
            ValueError: offset or count is negative, or the descriptor is; or count is None for
                what is no regular file and has no end that could be known.
            IsADirectoryError: file is a directory. For a descriptor or object given with a count
                it costs no system call to add it, so sending reports this instead.
            OSError: the file can't be opened, or its size can't be told.
            OverflowError: the range would end past 2**63 - 1, or the descriptor is too large for
                any system; or as for addbuf.

        """
        if type(file) is type(offset) is type(count) is int and on_release is None:
            # What a server adds for each response takes no call.
            left = self._left + count
            if (
                count
                and (file | offset | count) >= 0
                and left + offset <= MAX_BYTES
                and file <= MAX_FD
            ):
                self._left = left
                self._joinable = False
                self._queue.append((file, offset, count, None, False))
                return
        releases = hooks(on_release)
        # fileno first: it takes a third of the time to find out.
        if not hasattr(file, "fileno") and isinstance(file, str | os.PathLike):
            self._addowned(FileIO(file), offset, count, releases)
        else:
            self._addrange(file, offset, count, releases)

    def addfile_close(
        self,
        file: int | str | os.PathLike[str] | OpenFile,
        offset: int = 0,
        count: int | None = None,
    ) -> None:
        """Add a range of a file, and own the file from now on.

        It is closed when released, and at once if the range is empty or an exception is raised:
        an int by os.close, an object by its close().

        Args and Raises: as for addfile. An object without close(): TypeError.
        """
        if isinstance(file, str | os.PathLike):
            self.addfile(file, offset, count)
        else:
            self._addowned(file, offset, count, ())

    def extend(self, other: IOBatch) -> None:
        """Move all entries of another batch behind the entries of this one.

        The other batch ends empty. Its error stays where it is, so this also takes what a failed
        batch still holds.

        Raises:
            TypeError: other is no IOBatch.
            ValueError: other is this batch.
            RuntimeError: other is being sent: this is its hook or callback.
            OverflowError: as for addbuf.

        """
        if not isinstance(other, IOBatch):
            raise TypeError(f"an IOBatch is required, not {type(other).__name__!r}")
        if other is self:
            raise ValueError("a batch can't be moved behind itself")
        other._refuse_if_busy()
        empty: deque[Entry] = deque()
        left = self._left + other._left
        if left > MAX_BYTES:
            raise OverflowError(TOO_LONG)
        # From here on there is no call in which a signal's handler could add something, but the
        # last.
        moved, other._queue = other._queue, empty
        self._left = left
        self._joinable = self._joinable and other._joinable
        pin = other._pin
        other._left = other._pin = 0
        other._joinable = True
        # Who is sending this one holds on to its queue.
        if self._queue or self._busy:
            self._queue.extend(moved)
        else:
            self._queue = moved
            # The head of the one is the head of the other now: a retry must stay the same.
            self._pin = pin

    def prepend(self, data: Buffer, *, on_release: Callable[[], object] | None = None) -> None:
        """Add a buffer in front of what is left. Args and Raises: as for addbuf.

        Raises:
            RuntimeError: bytes were offered to a callback of iob_write that said "again", and
                must come first in its next offer; or bytes are being sent right now.

        """
        if self._pin or self._busy == SENDING:
            raise RuntimeError("the bytes at the head have been offered or are being sent")
        releases = hooks(on_release)
        entry = flatten(data)
        left = self._sum(len(entry))
        if entry:
            self._left = left
            self._joinable = False
            self._queue.extendleft((*releases, entry))
        else:
            self._release_empty(entry, releases)

    # Managing

    def prefetch(self, nbytes: int) -> None:
        """Tell the kernel that file ranges will be read soon (posix_fadvise(2), WILLNEED).

        It starts at the current position and goes from range to range; buffers don't count. Where
        the system or the file knows no such advice, nothing happens.

        Args:
            nbytes: how many bytes of file ranges.

        Raises:
            TypeError, ValueError: nbytes is no int, or negative.

        """
        nbytes = natural(nbytes, "nbytes")
        if _fadvise is None:
            return
        for entry in self._queue:
            if type(entry) is tuple and nbytes:
                fd, offset, count, _, _ = entry
                # It is advice only: a descriptor that has a fault shows it when it is sent.
                with suppress(OSError):
                    _fadvise(fd, offset, min(count, nbytes), os.POSIX_FADV_WILLNEED)
                nbytes -= min(count, nbytes)

    def reset(self) -> None:
        """Drop what is left, close what is owned, clear error and counts.

        The batch is as new, and can be used again; what hooks add meanwhile is its first content.

        Raises:
            RuntimeError: this is a hook or callback of the batch itself.

        """
        self._refuse_if_busy()
        self._drop()

    # What follows is for the functions that send.

    def _advance(self, nbytes: int, entries: int = 0) -> None:
        """Account for bytes that were accepted, and release the entries that they end.

        Args:
            nbytes: how many.
            entries: they are just so many entries that are all `bytes`; 0: nobody knows.

        """
        self._left -= nbytes
        self._sent += nbytes
        queue = self._queue
        releases: list[Release] = []
        if entries:
            nbytes = 0
            for _ in range(entries):
                queue.popleft()
        while nbytes:
            entry = queue.popleft()
            if type(entry) is bytes or type(entry) is memoryview:
                nbytes -= len(entry)
                if nbytes < 0:
                    queue.appendleft(memoryview(entry)[nbytes:])
                    self._joinable = False
                    nbytes = 0
                if type(entry) is memoryview:
                    entry.release()
            elif type(entry) is tuple:
                fd, offset, count, file, refused = entry
                nbytes -= count
                if nbytes < 0:
                    queue.appendleft((fd, offset + count + nbytes, -nbytes, file, refused))
                    nbytes = 0
            else:
                releases.append(entry)  # type: ignore[arg-type]  # nothing else is left
        while queue and type(queue[0]) is Release:
            releases.append(queue.popleft())  # type: ignore[arg-type]
        if not queue:
            self._joinable = True
        if releases:
            self._run(releases)

    def _fail(self, error: OSError) -> None:
        """Keep a permanent error, without the frames and views that its traceback holds."""
        error.__traceback__ = error.__context__ = error.__cause__ = None
        self._error = error
        self._pin = 0

    def _refuse_if_busy(self) -> None:
        if self._busy:
            raise RuntimeError("the batch is being sent: this is its own hook or callback")

    # What follows is for this class.

    def _sum(self, count: int) -> int:
        """Return the bytes left after an addition."""
        left = self._left + count
        if left > MAX_BYTES:
            raise OverflowError(TOO_LONG)
        return left

    def _addrange(self, file: object, offset: int, count: int | None, releases: Releases) -> None:
        fd = fileno(file)
        offset = natural(offset, "offset")
        count = max(0, file_size(fd) - offset) if count is None else natural(count, "count")
        left = self._sum(count)
        if offset + count > MAX_BYTES:
            raise OverflowError(TOO_LONG)
        if count:
            self._left = left
            self._joinable = False
            self._queue.extend(((fd, offset, count, file, False), *releases))
        else:
            self._run(releases)

    def _addowned(self, file: object, offset: int, count: int | None, releases: Releases) -> None:
        close = partial(os.close, file) if isinstance(file, int) else getattr(file, "close", None)
        if not callable(close):
            raise TypeError(f"a file that can be closed is required, not {type(file).__name__!r}")
        try:
            self._addrange(file, offset, count, (Release(close, closes=True), *releases))
        except BaseException:
            # The error that says what was wrong is the one to see.
            with suppress(OSError):
                close()
            raise

    def _release_empty(self, entry: bytes | memoryview, releases: Releases) -> None:
        if type(entry) is memoryview:
            entry.release()
        self._run(releases)

    def _run(self, releases: Iterable[Release]) -> None:
        """Run hooks, with the batch locked against sending and resetting."""
        busy, self._busy = self._busy, RELEASING
        try:
            for release in releases:
                try:
                    release.run()
                except BaseException as exc:  # noqa: BLE001 # there is nobody to raise it to
                    report_unraisable(exc)
        finally:
            self._busy = busy

    def _drop(self, left: int = 0) -> None:
        empty: deque[Entry] = deque()
        entries, self._queue = self._queue, empty
        self._left = left
        self._sent = self._pin = 0
        self._joinable = True
        self._error = None
        self._wants = EVENT_WRITE
        for entry in entries:
            if type(entry) is memoryview:
                entry.release()
        self._run(entry for entry in entries if isinstance(entry, Release))
