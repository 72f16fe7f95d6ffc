"""Buffers: what addbuf() and adds() take."""

from __future__ import annotations

import array
import ctypes
from typing import TYPE_CHECKING, Any

import pytest

from iobatch import IOBatch
from tests.support.batches import MAX_BYTES, check_invariants, data, mmap_of, take

if TYPE_CHECKING:
    from collections.abc import Callable


class Points(ctypes.Structure):
    _fields_ = (("x", ctypes.c_int32), ("y", ctypes.c_double))


BUFFERS: dict[str, Callable[[], Any]] = {
    "bytes": lambda: data(100),
    "subclass of bytes": lambda: type("Sub", (bytes,), {})(data(100)),
    "bytearray": lambda: bytearray(data(100)),
    "array of 4-byte items": lambda: array.array("I", range(50)),
    "array of doubles": lambda: array.array("d", [0.5, 1.5]),
    "mmap": lambda: mmap_of(data(5000)),
    "slice of a memoryview": lambda: memoryview(data(100))[7:91],
    "memoryview of two dimensions": lambda: memoryview(data(24)).cast("H", shape=[3, 4]),
    "memoryview without dimensions": lambda: memoryview(data(8)).cast("Q", shape=[]),
    "memoryview of chars": lambda: memoryview(data(24)).cast("c"),
    "ctypes array": lambda: (ctypes.c_uint16 * 9)(*range(9)),
    "ctypes array of two dimensions": (ctypes.c_int * 2) * 3,
    "ctypes structure": lambda: Points(7, 0.25),
}


@pytest.mark.parametrize("kind", BUFFERS)
def test_any_contiguous_buffer_is_sent_whole_and_counted_in_bytes(kind: str) -> None:
    buffer = BUFFERS[kind]()
    content = memoryview(buffer).tobytes()
    batch = IOBatch()
    batch.addbuf(buffer)
    assert batch.bytesleft == len(content)
    check_invariants(batch)
    assert take(batch, 3) + take(batch) == content
    assert (batch.bytesleft, batch.bytessent) == (0, len(content))


@pytest.mark.parametrize("shape", [(6,), (2, 3), (2, 0, 3), ()], ids=str)
@pytest.mark.parametrize("dtype", ["u1", "<i4", ">f8", "?", "c16", "i4,f8"])
def test_numpy_array_of_any_shape_and_dtype_is_sent_as_its_bytes(
    shape: tuple[int, ...], dtype: str
) -> None:
    numpy = pytest.importorskip("numpy", reason="install numpy")
    content = numpy.zeros(shape, dtype)
    content.reshape(-1).view("u1")[:] = 65
    batch = IOBatch()
    batch.addbuf(content)
    batch.addbuf(b"end")
    assert take(batch) == content.tobytes() + b"end"


def test_buffer_that_is_not_contiguous_is_refused_and_changes_nothing() -> None:
    batch = IOBatch()
    batch.addbuf(b"before")
    view = memoryview(bytearray(12))
    for bad in (view[::2], view[::-1]):
        for add in (batch.addbuf, batch.prepend):
            with pytest.raises(BufferError):
                add(bad)
    assert take(batch) == b"before"


def test_array_in_fortran_order_is_refused() -> None:
    """Such an array is contiguous, but not C-contiguous."""
    numpy = pytest.importorskip("numpy", reason="install numpy")
    with pytest.raises(BufferError):
        IOBatch().addbuf(numpy.zeros((2, 3), order="F"))


@pytest.mark.parametrize(
    "bad", ["text", 5, None, [b"x"], object()], ids=lambda bad: type(bad).__name__
)
def test_object_without_a_buffer_is_refused_and_changes_nothing(bad: Any) -> None:
    batch = IOBatch()
    for add in (batch.addbuf, batch.prepend):
        with pytest.raises(TypeError):
            add(bad)
    assert not batch
    check_invariants(batch)


def test_buffer_is_held_and_not_copied() -> None:
    """A send takes the content that the buffer has at that time."""
    buffer = bytearray(b"before")
    batch = IOBatch()
    batch.addbuf(buffer)
    buffer[:] = b"later!"
    assert take(batch) == b"later!"


def test_adds_encodes_as_utf_8_or_by_the_given_encoding() -> None:
    batch = IOBatch()
    batch.adds("Grüße, ")
    batch.adds("Grüße", "latin-1")
    batch.adds("")
    assert batch.bytesleft == 14
    assert take(batch) == "Grüße, ".encode() + "Grüße".encode("latin-1")


@pytest.mark.parametrize(
    ("args", "error"),
    [
        ((b"bytes",), TypeError),
        ((5,), TypeError),
        (("ü", "ascii"), UnicodeEncodeError),
        (("x", "no such encoding"), LookupError),
    ],
    ids=["bytes", "int", "not ASCII", "unknown encoding"],
)
def test_adds_refuses_other_types_and_unencodable_text(
    args: tuple[Any, ...], error: type[Exception]
) -> None:
    """The exception is raised before anything changes."""
    batch = IOBatch()
    with pytest.raises(error):
        batch.adds(*args)
    assert not batch


def test_empty_buffer_is_dropped_and_released_at_once() -> None:
    """Its view is released before its hook runs, so the hook can resize the bytearray."""
    batch = IOBatch()
    for add in (batch.addbuf, batch.prepend):
        buffer = bytearray()
        seen = []

        def resize(buffer: bytearray = buffer, seen: list[int] = seen) -> None:
            buffer.append(1)
            seen.append(batch.bytesleft)

        add(buffer, on_release=resize)
        assert (buffer, seen) == (b"\1", [0])
        add(b"")
        add(memoryview(b""))
        check_invariants(batch)
        assert not batch


def test_empty_bytearray_can_be_resized_after_addbuf() -> None:
    batch = IOBatch()
    buffer = bytearray()
    batch.addbuf(buffer)
    buffer.append(1)


def test_buffer_beyond_the_largest_sum_is_refused_and_changes_nothing() -> None:
    """A batch has at most 2**63 - 1 bytes."""
    batch = IOBatch()
    batch.addfile(0, 0, MAX_BYTES - 1)
    buffer = bytearray(2)
    seen: list[int] = []
    for add in (batch.addbuf, batch.prepend):
        for two_bytes in (b"12", buffer):
            with pytest.raises(OverflowError):
                add(two_bytes)
        with pytest.raises(OverflowError):
            add(buffer, on_release=lambda: seen.append(1))
    with pytest.raises(OverflowError):
        batch.adds("12")
    assert (batch.bytesleft, seen) == (MAX_BYTES - 1, [])
    buffer.append(0)
    batch.addbuf(b"1")
    assert batch.bytesleft == MAX_BYTES
    check_invariants(batch)
