"""prefetch(): read-ahead advice for file ranges."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any

import pytest

from iobatch import IOBatch, iob_send
from tests.support.batches import data, take
from tests.support.fakes import Scripted, patch_os

if TYPE_CHECKING:
    from tests.support.batches import MakeFile


def test_prefetch_advises_the_next_bytes_of_file_ranges(
    make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Advice starts at the first unsent byte and continues across entries. Buffers don't count."""
    advised: list[tuple[int, ...]] = []
    patch_os(monkeypatch, "posix_fadvise", lambda *args: advised.append(args))
    content = data(400_000)
    one, other = make_file(content), make_file(content)
    willneed = os.POSIX_FADV_WILLNEED
    batch = IOBatch()
    batch.addfile(one, 10, 300_000)
    batch.addbuf(bytes(1000))
    batch.addfile(other, 5, 200_000)
    batch.addfile(one, 0, 100_000)
    batch.prefetch(300_000 + 50_000)
    assert advised == [(one, 10, 300_000, willneed), (other, 5, 50_000, willneed)]
    advised.clear()
    with Scripted() as sock:
        while batch.bytessent < 200_000:
            # With flags, file ranges are read: Scripted has no descriptor for sendfile.
            assert iob_send(sock, batch, limit=200_000, flags=socket.MSG_OOB) > 0
    first_unsent = 10 + batch.bytessent
    batch.prefetch(1)
    assert len(advised) == 1
    assert advised[0][0] == one
    assert advised[0][1] >= first_unsent
    advised.clear()
    batch.prefetch(2**63)
    assert [(fd, offset + count) for fd, offset, count, _ in advised] == [
        (one, 300_010),
        (other, 200_005),
        (one, 100_000),
    ]
    advised.clear()
    batch.prefetch(0)
    assert advised == []
    batch.reset()
    batch.prefetch(10)
    assert advised == []


def test_prefetch_changes_nothing_and_ignores_a_closed_descriptor(make_file: MakeFile) -> None:
    """The send reports the closed descriptor."""
    content = data(100_000)
    fd = os.dup(make_file(content))
    batch = IOBatch()
    batch.addfile(fd)
    batch.prefetch(100_000)
    assert (batch.bytesleft, batch.bytessent) == (100_000, 0)
    assert take(batch, 50_000) == content[:50_000]
    batch.reset()
    batch.addfile(fd)
    os.close(fd)
    batch.prefetch(10)
    assert batch.bytesleft == 100_000
    assert batch.error is None


@pytest.mark.parametrize(("bad", "error"), [(-1, ValueError), ("1", TypeError), (1.5, TypeError)])
def test_prefetch_refuses_negative_and_non_integer_counts(bad: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        IOBatch().prefetch(bad)
