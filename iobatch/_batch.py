"""IOBatch: the public face of a batch, which checks what callers give. Its core does the rest."""

from __future__ import annotations

import os
import warnings
from functools import partial
from io import FileIO
from operator import attrgetter
from typing import TYPE_CHECKING, NoReturn

from iobatch._arguments import (
    MAX_BYTES,
    MAX_INT,
    as_byte_view,
    check_nonnegative,
    file_size,
    fileno,
)
from iobatch._core import COUNT_UNKNOWN, SENDING, TOO_LONG, BatchCore
from iobatch._entries import Release, describe
from iobatch._errors import copy_to_raise, suppress_own

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from typing_extensions import Buffer

    from iobatch._arguments import HasFileno, OpenFile
    from iobatch._entries import Releases

_fadvise = getattr(os, "posix_fadvise", None)


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

    __slots__ = ("__weakref__", "_core")

    def __init__(self) -> None:
        """Make an empty batch."""
        self._core = BatchCore()

    @property
    def bytesleft(self) -> int:
        """The bytes that are still to be written."""
        return self._core.left

    @property
    def bytessent(self) -> int:
        """The bytes that were written since creation or reset()."""
        return self._core.sent

    @property
    def error(self) -> OSError | None:
        """The permanent error: why calls return IOB_ERROR, until reset()."""
        core = self._core
        if core.activity == SENDING:
            return None  # what is stored then stands for no error yet
        if core.error is COUNT_UNKNOWN:
            # One for each batch, since the caller may raise it.
            core.error = copy_to_raise(COUNT_UNKNOWN)
        return core.error

    @property
    def wants(self) -> int:
        """What to wait for after IOB_AGAIN: selectors.EVENT_WRITE, or EVENT_READ (TLS)."""
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
        entries = [entry for entry in core.look() if type(entry) is not Release]
        if entries:
            parts.append(f"{len(entries)} entries")
            parts.append(f"the first: {describe(entries[0])}")
        if self.error is not None:
            parts.append(repr(self.error))
        return f"<IOBatch {', '.join(parts)}>"

    def __del__(self) -> None:
        # There is no core where __init__ was given an argument.
        core = getattr(self, "_core", None)
        if core is not None and (core.left or core.unsettled):
            try:
                if any(type(entry) is Release and entry.closes for entry in core.look()):
                    warnings.warn(f"unclosed file in {self!r}", ResourceWarning, 2, self)
            finally:  # also where warnings are errors
                # Full, so that hooks can't add to what is never going to be sent.
                core.clear(left=MAX_BYTES)

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
            # BatchCore.append once more: most of what is sent comes this way, and a call would take
            # a third of the time.
            core = self._core
            left = len(data) + core.left
            if left > MAX_BYTES:
                raise OverflowError(TOO_LONG)
            if data:
                core.left = left
                core.queue.append(data)
        else:
            releases = _releases(on_release)
            entry = as_byte_view(data)
            self._core.append(entry, len(entry), releases)

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
        the object is referenced until then. A path is opened here, owned, and closed when released.
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
            # As in addbuf: what a server adds for each response.
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
        releases = _releases(on_release)
        # fileno first: it takes a third of the time to find out.
        if not hasattr(file, "fileno") and isinstance(file, str | os.PathLike):
            self._add_owned(FileIO(file), offset, count, releases)
        else:
            self._add_range(file, offset, count, releases)

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
            self._add_owned(file, offset, count)

    def extend(self, other: IOBatch) -> None:
        """Move all entries of another batch to the end of this one.

        The other batch ends empty. Its error stays where it is, so this also takes what a failed
        batch still holds. If that batch has failed because its count is unknown (see iobatch(7)),
        some of these bytes may have been sent already.

        Raises:
            TypeError: other is no IOBatch.
            ValueError: other is this batch.
            RuntimeError: other is being sent: this is its hook or callback.
            OverflowError: as for addbuf.

        """
        if not isinstance(other, IOBatch):
            raise TypeError(f"an IOBatch is required, not {type(other).__name__!r}")
        if other is self:
            raise ValueError("a batch can't be moved to its own end")
        self._core.take(core_of(other))

    def prepend(self, data: Buffer, *, on_release: Callable[[], object] | None = None) -> None:
        """Add a buffer before what is left. Args and Raises: as for addbuf.

        Raises:
            RuntimeError: bytes were offered to a callback of iob_write that said "again", and
                must come first in its next offer; or bytes are being sent right now.

        """
        releases = _releases(on_release)
        self._core.prepend(as_byte_view(data), releases)

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
        nbytes = check_nonnegative(nbytes, "nbytes")
        if _fadvise is None:
            return
        for entry in self._core.look():
            if type(entry) is tuple and nbytes:
                fd, offset, count, _, _ = entry
                # It is advice only: a descriptor that has a fault shows it when it is sent.
                with suppress_own(OSError):
                    _fadvise(fd, offset, min(count, nbytes), os.POSIX_FADV_WILLNEED)
                nbytes -= min(count, nbytes)

    def reset(self) -> None:
        """Drop what is left, close what is owned, clear error and counts.

        The batch is as new, and can be used again; what hooks add meanwhile is its first content.

        Raises:
            RuntimeError: this is a hook or callback of the batch itself.

        """
        self._core.check_idle()
        self._core.clear()

    # What follows is for this class.

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
            release = _closing(file)
            self._add_range(file, offset, count, (release, *releases))
        except BaseException:
            if release is None or release not in self._core.look():  # else the batch closes it
                # The error that says what was wrong is the one to see.
                with suppress_own(OSError, TypeError):
                    (release or _closing(file))()
            raise


def _closing(file: object) -> Release:
    close = partial(os.close, file) if isinstance(file, int) else getattr(file, "close", None)
    if not callable(close):
        raise TypeError(f"a file that can be closed is required, not {type(file).__name__!r}")
    return Release(close, closes=True)


def _releases(on_release: Callable[[], object] | None) -> Releases:
    if on_release is None:
        return ()
    if not callable(on_release):
        raise TypeError(f"on_release must be callable, not {type(on_release).__name__!r}")
    return (Release(on_release),)


# A batch's core: the one way to it.
core_of: Callable[[IOBatch], BatchCore] = attrgetter("_core")
