"""Transforms: what they may return, and what they may do with their input."""

from __future__ import annotations

import array
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from iobatch import IOBatch, iob_write
from iobatch.filters import Filter
from tests.support.batches import batch_of
from tests.support.filters import (
    BODY,
    Identity,
    PartialWriteSocket,
    Swallowing,
    assert_refused,
    step_until_done,
    write_and_finish,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.fakes import Scripted


class Dropping(Identity):
    """A transform without any output."""

    def compress(self, data: Any) -> bytes:
        return b""


def test_output_of_flush_alone_is_the_whole_stream(sock: Scripted) -> None:
    pipeline = Filter(Swallowing())
    batch = batch_of(BODY)
    step_until_done(sock, lambda: iob_write(sock, batch, pipeline), pipeline)
    step_until_done(sock, lambda: pipeline.drain(sock), pipeline)
    assert not sock.calls
    step_until_done(sock, lambda: pipeline.finish(sock), pipeline)
    assert sock.taken == BODY


def test_transform_without_output_causes_no_system_call(sock: Scripted) -> None:
    write_and_finish(sock, batch_of(BODY), Filter(Dropping(), Filter(Identity())))
    assert not sock.calls


@pytest.mark.parametrize(
    "make",
    [bytes, bytearray, memoryview, lambda view: array.array("B", view), lambda view: view[:]],
    ids=["bytes", "bytearray", "memoryview", "array", "part of the input"],
)
def test_output_may_be_any_buffer_and_is_copied_unless_bytes(make: Callable[[Any], Any]) -> None:
    """The transform overwrites its earlier mutable outputs at each call."""
    outputs: list[Any] = []

    def compress(data: Any) -> Any:
        for earlier in outputs:
            memoryview(earlier)[:] = bytes(len(earlier))
        if isinstance(output := make(data), bytearray | array.array):
            outputs.append(output)
        return output

    source = bytearray(BODY)
    with PartialWriteSocket(5000) as sock, IOBatch() as batch:
        batch.addbuf(source, on_release=lambda: source.__setitem__(slice(None), b""))
        write_and_finish(sock, batch, Filter(SimpleNamespace(compress=compress, flush=bytes)))
        assert sock.taken == BODY
    assert not source, "the caller's buffer is still held"


@pytest.mark.parametrize("output", [None, "text", 5])
def test_output_that_is_not_a_buffer_is_a_type_error(output: Any, sock: Scripted) -> None:
    """bytes(5) would be five zero bytes."""
    pipeline = Filter(SimpleNamespace(compress=lambda _: output, flush=bytes))
    batch = batch_of(BODY)
    with pytest.raises(TypeError):
        iob_write(sock, batch, pipeline)
    assert batch.bytesleft == len(BODY)
    assert_refused(sock, pipeline, OSError, "TypeError")


def test_transform_may_release_the_view_it_is_given(sock: Scripted) -> None:
    class Releasing(Identity):
        def compress(self, data: Any) -> bytes:
            with memoryview(data) as view:
                output = bytes(view)
            if isinstance(data, memoryview):
                data.release()
            return output

    write_and_finish(sock, batch_of(b"data"), Filter(Releasing()))
    assert sock.taken == b"data"
