"""Handlers that raise while file ranges are probed or read ahead."""

from __future__ import annotations

import errno
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from iobatch import IOBatch
from iobatch._batch import core_of
from iobatch._pagecache import PageCacheProbe
from iobatch.aio._readahead import start_read_ahead
from tests.support.batches import data
from tests.support.interruptions import LARGE, SMALL, interrupted_by, raise_from_handler
from tests.support.loops import both_loops
from tests.support.sockets import fd_count

if TYPE_CHECKING:
    from tests.support.batches import MakeFile


def test_oserror_of_a_handler_leaves_the_probe(make_file: MakeFile) -> None:
    """The probe handles an OSError of preadv or dup, but not a handler's.

    A BlockingIOError of preadv means that the range is not cached.
    """
    fd = make_file(data(SMALL))
    batch = IOBatch()
    batch.addfile(fd)
    probe = PageCacheProbe()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("iobatch._pagecache._preadv", raise_from_handler)
        patch.setattr("os.dup", raise_from_handler)
        for call in (
            lambda: probe.try_join_cached(core_of(batch), SMALL),
            lambda: probe.ready(core_of(batch), 100),
            probe.read_ahead,
        ):
            with pytest.raises(BlockingIOError, match="handler"):
                call()
    assert batch.bytesleft == SMALL


@both_loops
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
async def test_interrupted_start_of_a_read_ahead_leaves_no_descriptor_open(
    error: type[BaseException], make_file: MakeFile
) -> None:
    """The duplicate for the thread is closed, and the exception leaves the call."""

    def handler(_number: int, _frame: object) -> None:
        raise error("from a handler")

    fd = make_file(data(LARGE))
    batch = IOBatch()
    batch.addfile(fd)
    probe = PageCacheProbe()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("iobatch._pagecache._preadv", not_cached)
        assert probe.ready(core_of(batch), LARGE) == 0
    before = fd_count()
    loop: Any = SimpleNamespace(run_in_executor=interrupted_by(handler))
    with pytest.raises(error, match="handler"):
        start_read_ahead(loop, probe)
    assert fd_count() == before


def not_cached(*_args: object) -> int:
    raise BlockingIOError(errno.EAGAIN, "not cached")
