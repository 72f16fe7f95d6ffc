"""MemoryError and RecursionError while a batch is sent."""

from __future__ import annotations

import errno
import gc
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from iobatch import IOB_ERROR, IOBatch, iob_send, iob_sendmsg, iob_write
from iobatch._core import COUNT_UNKNOWN
from iobatch.filters import Filter
from tests.support.batches import batch_of, check_invariants, data, take
from tests.support.fakes import Scripted, script_sendfile
from tests.support.filters import Counting
from tests.support.forms import pure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.batches import MakeFile


class Exhausted(Scripted):
    """A socket that takes all bytes, after which Python can't make the int to return."""

    def _take(self, *args: Any) -> int:
        super()._take(*args)
        raise MemoryError


def write(sock: Any, batch: IOBatch) -> int:
    return iob_write(sock, batch, Exhausted.send)


def write_by_send(sock: Any, batch: IOBatch) -> int:
    return iob_write(sock, batch, Scripted.send)


@pytest.mark.parametrize("step", [iob_send, iob_sendmsg, write], ids=lambda step: step.__name__)
@pytest.mark.parametrize("buffers", [[b"one", b"two"], [b"one", bytearray(b"two")]])
def test_batch_has_failed_and_sends_no_byte_twice(
    step: Callable[[Any, IOBatch], int], buffers: list[Any]
) -> None:
    """The batch can be used again after reset()."""
    batch = IOBatch()
    batch.addbufs(buffers)
    with Exhausted() as sock:
        with pytest.raises(MemoryError):
            step(sock, batch)
        assert len(sock.calls) == 1
        assert batch.error is not None
        assert batch.error.errno == errno.EIO
        assert step(sock, batch) == IOB_ERROR
        assert len(sock.calls) == 1
    check_invariants(batch)
    batch.reset()
    batch.addbuf(b"again")
    assert take(batch) == b"again"


def test_memory_error_before_the_first_byte_leaves_the_batch_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As while a file is read: no call that can take bytes has begun."""
    batch = batch_of(b"one")
    with monkeypatch.context() as patch, Scripted() as sock:

        def stage(*_args: object, **_options: object) -> Any:
            raise MemoryError

        patch.setattr("iobatch._core.BatchCore.coalesce_head", stage)
        with pytest.raises(MemoryError):
            pure(iob_write)(sock, batch, Scripted.send)
    assert batch.error is None
    assert take(batch) == b"one"


@pytest.fixture
def no_collections() -> Iterator[None]:
    """Garbage of other tests has finalizers, which must not run at the recursion limit."""
    gc.disable()
    yield
    gc.enable()


def at_depth(depth: int, step: Callable[[], int]) -> int:
    return at_depth(depth - 1, step) if depth else step()


@pytest.mark.usefixtures("no_collections")
@pytest.mark.parametrize("step", [iob_send, iob_sendmsg, write_by_send], ids=lambda s: s.__name__)
def test_recursion_error_at_any_depth_sends_no_byte_twice(
    step: Callable[[Any, IOBatch], int], make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest is sent by later calls, or the batch has failed."""
    content = data(50_000)
    fd = make_file(content)
    wanted = b"header" + content + b"view"
    outcomes = set()
    for free in range(1, 40):
        batch = batch_of(b"header")
        batch.addfile(fd)
        batch.addbuf(bytearray(b"view"), on_release=[].clear)
        with Scripted() as sock, monkeypatch.context() as patch:
            script_sendfile(patch, sock)
            limit = sys.getrecursionlimit()
            with suppress(RecursionError):
                at_depth(limit - stack_depth() - free, lambda: step(sock, batch))  # noqa: B023
            while step(sock, batch) > 0:
                pass
            if batch.error is None:
                assert sock.taken == wanted
            else:
                assert batch.error.errno == errno.EIO
                assert wanted.startswith(sock.taken)
            outcomes.add(batch.error is None)
        batch.reset()
        check_invariants(batch)
    assert True in outcomes


@pytest.mark.usefixtures("no_collections")
def test_recursion_error_at_any_depth_makes_no_filter_take_a_byte_twice() -> None:
    """Also where the filter's destination has raised, and the message for it is missing."""

    def refuse(_sock: object, _view: memoryview) -> int:
        raise ZeroDivisionError

    errors = set()
    for free in range(1, 40):
        transform = Counting()
        pipeline = Filter(transform, refuse)
        batch = batch_of(b"body")
        limit = sys.getrecursionlimit()
        with suppress(RecursionError, ZeroDivisionError):
            at_depth(
                limit - stack_depth() - free,
                lambda: iob_write(None, batch, pipeline),  # noqa: B023
            )
        with suppress(ZeroDivisionError):
            iob_write(None, batch, pipeline)
        assert transform.take() <= len(b"body")
        errors.add(str(pipeline.error))
    assert "[Errno 5] the filter failed: ZeroDivisionError" in errors
    assert str(COUNT_UNKNOWN) in errors


def stack_depth() -> int:
    """Return the number of frames of the caller."""
    depth = 0
    frame = sys._getframe(1)
    while frame is not None:
        depth += 1
        frame = frame.f_back  # type: ignore[assignment]
    return depth
