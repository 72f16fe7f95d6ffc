"""What is queued in a batch: buffers, file ranges, and what to run after them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, final

from attrs import define

if TYPE_CHECKING:
    from collections.abc import Callable

# One system call takes no more buffers than IOV_MAX (writev(2): EINVAL; sendmsg(2): EMSGSIZE).
IOV_MAX: Final = os.sysconf("SC_IOV_MAX") if hasattr(os, "sysconf") else 16

# A file range: the descriptor, the offset, the count, the object that the descriptor came from, and
# whether it must be read because sendfile refused it. The object is kept referenced, so that it is
# not collected, its descriptor closed and the number reused; for an int it is None, which keeps
# nothing open. A tuple, since an object of a class takes five times as long to make, and most
# responses need one.
FileRange = tuple[int, int, int, object, bool]


@final
@define(eq=False)
class Release:
    """Queued after the entry that it belongs to, and called when it comes to the head.

    Called again it does nothing: an exception of a signal handler leaves open whether it began.
    """

    _run: Callable[[], object] | None
    # It closes a file that the batch owns.
    closes: bool = False

    def __call__(self) -> None:
        run, self._run = self._run, None
        if run is not None:
            run()


# Bytes to be written are plain `bytes`, or a one-dimensional memoryview of unsigned bytes that
# belongs to the batch. A FileRange becomes bytes, or goes by sendfile. A Release has no bytes. No
# entry is empty, and a Release is at the head only until settle() has taken it off.
Entry = bytes | memoryview | FileRange | Release
Releases = tuple[Release, ...]


def describe(entry: Entry) -> str:
    """Return what repr says of an entry with bytes."""
    if type(entry) is tuple:
        fd, offset, count, _, _ = entry
        return f"{count} bytes of descriptor {fd} from offset {offset}"
    return f"a buffer of {len(entry)} bytes"  # type: ignore[arg-type]  # never a Release


def _seek_and_read(fd: int, nbytes: int, offset: int) -> bytes:
    """Do what pread does where there is none (Windows): the position is put back."""
    position = os.lseek(fd, 0, os.SEEK_CUR)
    try:
        os.lseek(fd, offset, os.SEEK_SET)
        return os.read(fd, nbytes)
    finally:
        os.lseek(fd, position, os.SEEK_SET)


pread = getattr(os, "pread", _seek_and_read)
