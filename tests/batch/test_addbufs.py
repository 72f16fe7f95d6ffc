"""addbufs(): many buffers in one call, all or none."""

from __future__ import annotations

import errno
import mmap
from typing import TYPE_CHECKING, Any

import pytest

from iobatch import IOB_DONE, IOBatch, iob_write
from iobatch._batch import core_of
from tests.support.batches import MAX_BYTES, batch_of, check_invariants, data, take

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PIECES = [data(7, seed=1), b"", data(300, seed=2), data(1, seed=3), b""]
KINDS: dict[str, Callable[[bytes], Any]] = {
    "bytes": bytes,
    "bytearray": bytearray,
    "memoryview": memoryview,
    "two-byte items": lambda piece: memoryview(piece * 2).cast("H"),
}
ITERABLES: dict[str, Callable[[list[Any]], Any]] = {
    "list": list,
    "tuple": tuple,
    "iterator": iter,
    "generator": lambda buffers: (buffer for buffer in buffers),
    "values of a dict": lambda buffers: dict(enumerate(buffers)).values(),
}


@pytest.mark.parametrize("iterable", ITERABLES)
@pytest.mark.parametrize("kind", KINDS)
def test_addbufs_adds_what_addbuf_of_each_adds(kind: str, iterable: str) -> None:
    """Empty buffers are dropped."""
    buffers = [KINDS[kind](piece) for piece in PIECES]
    batch, single = batch_of(b"before"), batch_of(b"before")
    batch.addbufs(ITERABLES[iterable](buffers))
    for buffer in buffers:
        single.addbuf(buffer)
    check_invariants(batch)
    assert batch.bytesleft == single.bytesleft
    assert [type(entry) for entry in core_of(batch).queue] == [
        type(entry) for entry in core_of(single).queue
    ]
    assert take(batch) == take(single) == b"before" + b"".join(map(bytes, buffers))


def test_addbufs_takes_buffers_of_different_kinds() -> None:
    memory = mmap.mmap(-1, 10)
    memory[:] = b"0123456789"
    batch = IOBatch()
    batch.addbufs([b"bytes ", bytearray(b"bytearray "), b"", memoryview(b"view "), b"", memory])
    check_invariants(batch)
    assert take(batch) == b"bytes bytearray view 0123456789"
    memory.close()


def test_addbufs_of_nothing_adds_nothing() -> None:
    batch = IOBatch()
    nothing: list[Any] = [(), [b"", bytearray()], iter(())]
    for buffers in nothing:
        batch.addbufs(buffers)
        assert not batch
        check_invariants(batch)


def test_bytearrays_can_be_resized_as_soon_as_they_are_released() -> None:
    """An empty one is released by addbufs() itself."""
    empty, full = bytearray(), bytearray(b"full")
    batch = IOBatch()
    batch.addbufs([empty, full])
    empty.append(1)
    with pytest.raises(BufferError):
        full.append(1)
    take(batch)
    full.append(1)


def released_view() -> memoryview:
    view = memoryview(b"released")
    view.release()
    return view


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        ("text", TypeError),
        (5, TypeError),
        (None, TypeError),
        ([b"nested"], TypeError),
        (memoryview(bytearray(12))[::2], BufferError),
        (released_view(), ValueError),
    ],
    ids=["str", "int", "None", "list", "not contiguous", "released"],
)
@pytest.mark.parametrize("position", [0, 2, 3])
def test_bad_buffer_is_refused_by_its_position_and_none_is_added(
    bad: Any, error: type[Exception], position: int
) -> None:
    """The other buffers are released although the exception is still alive."""
    good = bytearray(b"good")
    buffers: list[Any] = [b"bytes", good, b"more"]
    buffers.insert(position, bad)
    batch = batch_of(b"before")
    with pytest.raises(error, match=rf"^buffers\[{position}\]: ") as caught:
        batch.addbufs(buffers)
    good.append(1)
    assert caught.value.__traceback__
    check_invariants(batch)
    assert take(batch) == b"before"


def test_buffer_that_is_not_contiguous_is_not_held_by_the_exception() -> None:
    buffer = bytearray(12)
    for add in (IOBatch().addbuf, IOBatch().prepend, lambda view: IOBatch().addbufs([view])):
        with memoryview(buffer)[::2] as view, pytest.raises(BufferError) as caught:
            add(view)
        buffer.append(1)
        assert caught.value.__traceback__


def test_overlong_sum_is_refused_and_none_is_added() -> None:
    buffer = bytearray(b"ab")
    bad: list[Any] = [[b"1", b"2"], [b"", buffer], (b"1" for _ in range(2))]
    for buffers in bad:
        batch = IOBatch()
        batch.addfile(0, 0, MAX_BYTES - 1)
        with pytest.raises(OverflowError) as caught:
            batch.addbufs(buffers)
        buffer.append(0)
        assert caught.value.__traceback__
        assert batch.bytesleft == MAX_BYTES - 1
        check_invariants(batch)
        batch.addbufs([b"1"])
        assert batch.bytesleft == MAX_BYTES


def test_buffer_of_an_overlong_sum_is_not_held_by_the_exception() -> None:
    buffer = bytearray(b"ab")
    batch = IOBatch()
    batch.addfile(0, 0, MAX_BYTES - 1)
    for add in (batch.addbuf, batch.prepend):
        with pytest.raises(OverflowError) as caught:
            add(buffer)
        buffer.append(0)
        assert caught.value.__traceback__


@pytest.mark.parametrize("bad", [b"abc", "abc", bytearray(b"abc"), 5, None])
def test_argument_that_is_no_iterable_of_buffers_is_refused(bad: Any) -> None:
    """The items of a single buffer are ints."""
    batch = IOBatch()
    with pytest.raises(TypeError):
        batch.addbufs(bad)
    assert not batch


def test_exception_of_the_iterator_propagates_and_none_is_added() -> None:
    error = OSError(errno.EIO, "from the iterator")
    buffer = bytearray(b"second")

    def buffers() -> Iterator[Any]:
        yield b"first"
        yield buffer
        raise error

    batch = IOBatch()
    with pytest.raises(OSError, match="from the iterator") as caught:
        batch.addbufs(buffers())
    assert caught.value is error
    buffer.append(1)
    assert not batch


def test_entries_that_the_iterator_adds_come_first() -> None:
    batch = batch_of(b"0")

    def buffers() -> Iterator[bytes]:
        yield b"a"
        batch.addbuf(b"1")
        yield b"b"
        batch.addbufs([b"2", b"3"])
        batch.prepend(b"-")
        yield b"c"

    batch.addbufs(buffers())
    check_invariants(batch)
    assert take(batch) == b"-0123abc"


@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_iterator_may_send_and_reset_the_batch(kind: type) -> None:
    batch = batch_of(b"sent", b"dropped")
    taken = bytearray()

    def buffers() -> Iterator[Any]:
        yield kind(b"a")
        taken.extend(take(batch, 4))
        yield kind(b"b")
        batch.reset()
        yield kind(b"c")

    batch.addbufs(buffers())
    check_invariants(batch)
    assert (taken, batch.bytessent) == (b"sent", 0)
    assert take(batch) == b"abc"


def test_sum_includes_what_the_iterator_adds() -> None:
    batch = IOBatch()

    def buffers() -> Iterator[bytes]:
        yield b"a"
        batch.addfile(0, 0, MAX_BYTES)

    with pytest.raises(OverflowError):
        batch.addbufs(buffers())
    assert batch.bytesleft == MAX_BYTES


def test_later_change_of_the_list_changes_nothing() -> None:
    buffers: list[Any] = [b"a", bytearray(b"b")]
    batch = IOBatch()
    batch.addbufs(buffers)
    buffers.clear()
    assert take(batch) == b"ab"


def test_callback_and_hook_may_call_addbufs_on_the_batch_that_is_sent() -> None:
    batch, taken = IOBatch(), bytearray()
    batch.addbuf(b"first", on_release=lambda: batch.addbufs([b" by", bytearray(b" hook")]))

    def callback(_sock: None, view: memoryview) -> int:
        if not taken:
            batch.addbufs(iter([bytearray(b" by"), b"", b" callback"]))
        taken.extend(view)
        return len(view)

    while iob_write(None, batch, callback) != IOB_DONE:
        check_invariants(batch)
    assert taken == b"first by callback by hook"
