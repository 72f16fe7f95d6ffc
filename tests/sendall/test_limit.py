"""The limit of iob_sendall: the most bytes of a step, and so between two calls of progress."""

from __future__ import annotations

import os
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from iobatch import SEND_LIMIT, WRITE_LIMIT, IOBatch, iob_sendall
from tests.support.batches import batch_of, check_invariants, data
from tests.support.fakes import Scripted
from tests.support.sockets import PATIENCE, receive, stream_pair

if TYPE_CHECKING:
    from tests.support.batches import MakeFile

CALLBACKS: dict[str, Any] = {"iob_send": None, "iob_write": socket.socket.send}
SIZE = 5_000_000


def steps_of(make_file: MakeFile, callback: Any, **options: Any) -> list[int]:
    """Send a buffer and a file range over a blocking socket; return the sizes of the steps."""
    content = data(SIZE)
    steps: list[int] = []
    batch = batch_of(content[:100_000])
    batch.addfile(make_file(content), 100_000)
    with stream_pair() as (one, other), ThreadPoolExecutor(1) as pool:
        reader = pool.submit(receive, other, SIZE)
        assert iob_sendall(one, batch, callback, progress=steps.append, **options) == SIZE
        assert reader.result(PATIENCE) == content
    assert sum(steps) == SIZE
    return steps


@pytest.mark.parametrize("callback", CALLBACKS.values(), ids=CALLBACKS)
@pytest.mark.parametrize("timeout", [None, PATIENCE])
@pytest.mark.parametrize("limit", [50_001, WRITE_LIMIT])
def test_no_step_sends_more_than_the_limit(
    make_file: MakeFile, callback: Any, limit: int, timeout: float | None
) -> None:
    steps = steps_of(make_file, callback, limit=limit, timeout=timeout)
    assert max(steps) <= limit
    assert len(steps) >= SIZE // limit


@pytest.mark.parametrize(
    ("callback", "most"), [(None, SEND_LIMIT), (socket.socket.send, WRITE_LIMIT)]
)
def test_default_is_that_of_iob_send_or_iob_write(
    make_file: MakeFile, callback: Any, most: int
) -> None:
    assert max(steps_of(make_file, callback)) == most


@pytest.mark.parametrize("limit", [None, 2 * SEND_LIMIT, 2**80])
def test_limit_above_the_default_or_none_makes_larger_steps(limit: int | None) -> None:
    """A callback is still offered at most WRITE_LIMIT bytes in a step."""
    content = bytes(2 * SEND_LIMIT)
    for callback, most in ((None, len(content)), (Scripted.send, WRITE_LIMIT)):
        steps: list[int] = []
        with Scripted() as sock:
            iob_sendall(sock, batch_of(content), callback, limit=limit, progress=steps.append)
            assert sock.taken == content
        assert max(steps) == most


@pytest.mark.parametrize(
    ("limit", "error"), [(0, ValueError), (-1, ValueError), ("1", TypeError), (1.5, TypeError)]
)
@pytest.mark.parametrize("callback", CALLBACKS.values(), ids=CALLBACKS)
def test_bad_limit_raises_and_sends_nothing(
    limit: Any, error: type[Exception], callback: Any
) -> None:
    """The batch may be empty or not. The descriptor's mode is kept."""
    batch = IOBatch()
    with Scripted() as sock:
        for _ in range(2):
            with pytest.raises(error):
                iob_sendall(sock, batch, callback, limit=limit, timeout=1)
            batch.addbuf(b"hello")
        assert (sock.calls, sock.gettimeout()) == ([], None)
    check_invariants(batch)


def test_limit_bounds_the_steps_to_a_descriptor() -> None:
    source, target = os.pipe()
    steps: list[int] = []
    try:
        assert iob_sendall(target, batch_of(b"0123456789"), limit=3, progress=steps.append) == 10
        assert os.read(source, 100) == b"0123456789"
    finally:
        os.close(source)
        os.close(target)
    assert steps == [3, 3, 3, 1]
