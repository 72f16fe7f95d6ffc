"""The version of a file: both forms read the same from the kernel."""

from __future__ import annotations

import errno
import inspect
import os
from typing import TYPE_CHECKING

import pytest

from iobatch._files import file_version
from tests.support.batches import data

if TYPE_CHECKING:
    from tests.support.batches import MakeFile


@pytest.mark.parametrize("mtime", [0, 1, -1_500_000_001, 2_000_000_000_123_456_789, 2**63 + 1])
def test_version_is_the_size_and_both_times_in_nanoseconds(mtime: int, make_file: MakeFile) -> None:
    """The last time is in the year 2262, and needs more than 63 bits."""
    fd = make_file(data(12_345))
    os.utime(fd, ns=(0, mtime))
    expected = (12_345, mtime, os.fstat(fd).st_ctime_ns)
    assert file_version(fd) == inspect.unwrap(file_version)(fd) == expected


def test_version_of_a_closed_descriptor_is_an_error(make_file: MakeFile) -> None:
    fd = os.dup(make_file(b""))
    os.close(fd)
    for form in (file_version, inspect.unwrap(file_version)):
        with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
            form(fd)
