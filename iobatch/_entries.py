"""The entries of a batch: buffers, file ranges, and the hooks to run after them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, final

from attrs import define

if TYPE_CHECKING:
    from collections.abc import Callable

# The most buffers in one system call. With more, writev(2) fails with EINVAL, sendmsg(2) with
# EMSGSIZE.
IOV_MAX: Final = os.sysconf("SC_IOV_MAX") if hasattr(os, "sysconf") else 16

# A file range: descriptor, offset, count, file object, and whether the range must be read because
# sendfile refused it. The reference to the file object keeps it from being collected, which would
# close its descriptor and let the number be reused. For an int descriptor the file object is None
# or the int. FileRange is a tuple because an object of a class takes five times as long to make,
# and most responses need a range.
FileRange = tuple[int, int, int, object, bool]


@final
@define(eq=False)
class Release:
    """A hook, queued directly after its entry and called once when that entry is released.

    A second call does nothing. So a Release whose call a signal handler interrupted can be called
    again, although it is unknown whether the hook has already started.
    """

    # The function to call; None after the call.
    _hook: Callable[[], object] | None
    # Whether the hook closes a file that the batch owns.
    closes: bool = False

    def __call__(self) -> None:
        hook, self._hook = self._hook, None
        if hook is not None:
            hook()


# A buffer is plain `bytes`, or a one-dimensional memoryview of unsigned bytes that the batch owns
# and releases. A FileRange is read into bytes or sent by sendfile. A Release has no bytes. Buffers
# and ranges are never empty. A Release is at the head only until release_entries() removes it.
Entry = bytes | memoryview | FileRange | Release
Releases = tuple[Release, ...]


def describe(entry: bytes | memoryview | FileRange) -> str:
    """Return a description of a buffer or a range for repr()."""
    if type(entry) is tuple:
        fd, offset, count, _, _ = entry
        return f"{count} bytes of descriptor {fd} from offset {offset}"
    try:
        return f"a buffer of {len(entry)} bytes"
    except ValueError:  # since the caller took it from the queue, the batch has released it
        return "a released buffer"
