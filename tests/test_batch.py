"""IOBatch: what is added, held, moved and released. No socket is needed here."""

from __future__ import annotations

import array
import copy
import ctypes
import errno
import gc
import io
import mmap
import os
import pickle
import selectors
import ssl
import sys
import warnings
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import iobatch
from iobatch import (
    COPY_LIMIT,
    IOB_AGAIN,
    IOB_DONE,
    IOB_ERROR,
    SEND_LIMIT,
    WRITE_LIMIT,
    IOBatch,
    TruncatedFileError,
    iob_send,
    iob_write,
)
from tests.helpers import (
    Borrowed,
    Scripted,
    bare_platform,
    check_invariants,
    data,
    fd_count,
    patch_os,
    run_python,
    take,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    MakeFile = Callable[[bytes], int]

pytestmark = pytest.mark.usefixtures("no_leaks")

MAX_BYTES = 2**63 - 1


class Points(ctypes.Structure):
    _fields_ = (("x", ctypes.c_int32), ("y", ctypes.c_double))


def make_mmap(content: bytes) -> mmap.mmap:
    memory = mmap.mmap(-1, len(content))
    memory[:] = content
    return memory


BUFFERS: dict[str, Callable[[], Any]] = {
    "bytes": lambda: data(100),
    "subclass of bytes": lambda: type("Sub", (bytes,), {})(data(100)),
    "bytearray": lambda: bytearray(data(100)),
    "array of 4-byte items": lambda: array.array("I", range(50)),
    "array of doubles": lambda: array.array("d", [0.5, 1.5]),
    "mmap": lambda: make_mmap(data(5000)),
    "slice of a memoryview": lambda: memoryview(data(100))[7:91],
    "memoryview of two dimensions": lambda: memoryview(data(24)).cast("H", shape=[3, 4]),
    "memoryview without dimensions": lambda: memoryview(data(8)).cast("Q", shape=[]),
    "memoryview of chars": lambda: memoryview(data(24)).cast("c"),
    "ctypes array": lambda: (ctypes.c_uint16 * 9)(*range(9)),
    "ctypes array of two dimensions": (ctypes.c_int * 2) * 3,
    "ctypes structure": lambda: Points(7, 0.25),
}


def failing_file(*, closed: list[str], fails: bool = False) -> Any:
    """Return an object that is no file, but can be closed."""

    class File:
        def close(self) -> None:
            closed.append("closed")
            if fails:
                raise OSError(errno.EIO, "close failed")

    return File()


# Constants and the package


def test_codes_and_limits() -> None:
    """The codes and limits have the contract's values, as plain ints."""
    assert (IOB_DONE, IOB_AGAIN, IOB_ERROR) == (0, -1, -3)
    assert (SEND_LIMIT, WRITE_LIMIT) == (2 * 1024 * 1024, 64 * 1024)
    assert 8 * 1024 <= COPY_LIMIT <= 64 * 1024
    for value in (IOB_DONE, IOB_AGAIN, IOB_ERROR, SEND_LIMIT, WRITE_LIMIT, COPY_LIMIT):
        assert type(value) is int


def test_public_names() -> None:
    """The package exports the contract's names, and each of them exists."""
    wanted = {
        "COPY_LIMIT",
        "IOB_AGAIN",
        "IOB_DONE",
        "IOB_ERROR",
        "SEND_LIMIT",
        "WRITE_LIMIT",
        "IOBatch",
        "TruncatedFileError",
        "iob_send",
        "iob_sendall",
        "iob_sendmsg",
        "iob_write",
    }
    assert wanted <= set(iobatch.__all__)
    assert all(hasattr(iobatch, name) for name in iobatch.__all__)
    assert (Path(iobatch.__file__).parent / "py.typed").exists()


def test_new_batch() -> None:
    """A new batch is empty and false, without an error, and wants to write."""
    batch = IOBatch()
    assert not batch
    assert (batch.bytesleft, batch.bytessent, batch.error) == (0, 0, None)
    assert batch.wants == selectors.EVENT_WRITE
    check_invariants(batch)


def test_slotted_and_identical_only_to_itself() -> None:
    """A batch takes no other attributes, its counts can't be set, and it equals only itself."""
    batch = IOBatch()
    assert batch != IOBatch()
    assert {batch: 1}[batch] == 1
    for name in ("bytesleft", "bytessent", "error", "wants", "other"):
        with pytest.raises(AttributeError):
            setattr(batch, name, 1)


def test_arguments_are_refused(unraisable: list[BaseException | None]) -> None:
    """IOBatch takes no arguments, and what __init__ refused is collected in silence."""
    with pytest.raises(TypeError):
        IOBatch(b"data")  # type: ignore[call-arg]
    gc.collect()
    assert unraisable == []


# Buffers


@pytest.mark.parametrize("kind", BUFFERS)
def test_any_contiguous_buffer(kind: str) -> None:
    """Any C-contiguous buffer goes out whole, and its length is in bytes."""
    buffer = BUFFERS[kind]()
    wanted = memoryview(buffer).tobytes()
    batch = IOBatch()
    batch.addbuf(buffer)
    assert batch.bytesleft == len(wanted)
    check_invariants(batch)
    assert take(batch, 3) + take(batch) == wanted
    assert (batch.bytesleft, batch.bytessent) == (0, len(wanted))


@pytest.mark.parametrize("shape", [(6,), (2, 3), (2, 0, 3), ()])
@pytest.mark.parametrize("dtype", ["u1", "<i4", ">f8", "?", "c16", "i4,f8"])
def test_numpy(shape: tuple[int, ...], dtype: str) -> None:
    """A numpy array of any shape and item type goes out as its bytes."""
    numpy = pytest.importorskip("numpy", reason="install numpy")
    content = numpy.zeros(shape, dtype)
    content.reshape(-1).view("u1")[:] = 65
    batch = IOBatch()
    batch.addbuf(content)
    batch.addbuf(b"end")
    assert take(batch) == content.tobytes() + b"end"


def test_not_contiguous() -> None:
    """What is not C-contiguous is refused with BufferError, and nothing changes."""
    batch = IOBatch()
    batch.addbuf(b"before")
    view = memoryview(bytearray(12))
    for bad in (view[::2], view[::-1]):
        for add in (batch.addbuf, batch.prepend):
            with pytest.raises(BufferError):
                add(bad)
    assert take(batch) == b"before"


def test_fortran_order() -> None:
    """A Fortran-contiguous array is not C-contiguous."""
    numpy = pytest.importorskip("numpy", reason="install numpy")
    with pytest.raises(BufferError):
        IOBatch().addbuf(numpy.zeros((2, 3), order="F"))


@pytest.mark.parametrize("bad", ["text", 5, None, [b"x"], object()], ids=repr)
def test_no_buffer(bad: Any) -> None:
    """What has no buffer is refused with TypeError, and nothing changes."""
    batch = IOBatch()
    for add in (batch.addbuf, batch.prepend):
        with pytest.raises(TypeError):
            add(bad)
    assert not batch
    check_invariants(batch)


def test_held_not_copied() -> None:
    """A buffer is held: what it contains when it is sent is what goes out."""
    buffer = bytearray(b"before")
    batch = IOBatch()
    batch.addbuf(buffer)
    buffer[:] = b"behind"
    assert take(batch) == b"behind"


def test_bytearray_is_locked_until_released() -> None:
    """A bytearray can't be resized while held, and can at once when its last byte was accepted."""
    buffer = bytearray(b"0123456789")
    batch = IOBatch()
    batch.addbuf(buffer)
    batch.addbuf(b"more")
    for _ in range(9):
        take(batch, 1)
        with pytest.raises(BufferError):
            buffer.append(0)
    take(batch, 1)
    buffer.append(0)
    assert take(batch) == b"more"


@pytest.mark.parametrize("kind", ["B", "H"])
def test_mmap_can_be_closed_when_released(kind: str) -> None:
    """An mmap, and a view of it in any format, can be closed as soon as it is released."""
    memory = make_mmap(bytes(100))
    batch = IOBatch()
    with memoryview(memory).cast(kind) as view:
        batch.addbuf(view)
    with pytest.raises(BufferError):
        memory.close()
    batch.reset()
    memory.close()


def test_caller_may_release_its_view() -> None:
    """The batch holds a view of its own: the caller's may be released at once."""
    batch = IOBatch()
    with memoryview(bytearray(b"abcd")).cast("H") as view:
        batch.addbuf(view)
    assert take(batch) == b"abcd"


def test_adds() -> None:
    """A str is encoded, as UTF-8 or as asked for."""
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
)
def test_adds_refuses(args: tuple[Any, ...], error: type[Exception]) -> None:
    """What is no str, or can't be encoded, raises before anything changes."""
    batch = IOBatch()
    with pytest.raises(error):
        batch.adds(*args)
    assert not batch


def test_zero_length_buffers_are_dropped_and_released() -> None:
    """An empty buffer is no entry: it is released at once, and can be resized in its hook."""
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


def test_zero_length_buffer_is_not_held() -> None:
    """An empty bytearray can be resized right after it was added."""
    batch = IOBatch()
    buffer = bytearray()
    batch.addbuf(buffer)
    buffer.append(1)


# File ranges


@pytest.mark.parametrize("size", [1, COPY_LIMIT, 3 * COPY_LIMIT])
def test_descriptor_is_borrowed(make_file: MakeFile, size: int) -> None:
    """A descriptor's range is sent from its offset; it stays open and its position is kept."""
    content = data(size + 20)
    fd = make_file(content)
    os.lseek(fd, 7, os.SEEK_SET)
    batch = IOBatch()
    batch.addfile(fd, 11, size)
    batch.addfile(fd, 0, 5)
    assert batch.bytesleft == size + 5
    assert take(batch) == content[11 : 11 + size] + content[:5]
    assert os.lseek(fd, 0, os.SEEK_CUR) == 7


def test_position_is_kept_without_pread(make_file: MakeFile) -> None:
    """Where there is no pread, the file's position is put back."""
    content = data(1000)
    fd = make_file(content)
    os.lseek(fd, 7, os.SEEK_SET)
    with bare_platform() as bare:
        batch = bare.IOBatch()
        batch.addfile(fd, 100, 800)
        batch.prefetch(100)
        sock = Scripted()
        with sock:
            assert bare.iob_send(sock, batch) == 800
        assert sock.taken == content[100:900]
        assert {call.flags for call in sock.calls} == {0}
    assert os.lseek(fd, 0, os.SEEK_CUR) == 7


def test_object_is_borrowed_and_referenced(tmp_path: Path) -> None:
    """A file object lives until released, so its number is not reused, and is not closed."""
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    file = path.open("rb")
    try:
        batch = IOBatch()
        batch.addfile(file, 2, 5)
        assert take(batch) == b"23456"
        assert not file.closed
        batch.addfile(file)
        references = sys.getrefcount(file)
        batch.reset()
        assert not file.closed
        assert sys.getrefcount(file) < references
    finally:
        file.close()


def test_object_lives_while_unsent(make_file: MakeFile) -> None:
    """The batch keeps a file object alive that nobody else has, while it is unsent."""
    content = data(100_000)
    file = Borrowed(make_file(content))
    alive = weakref.ref(file)
    batch = IOBatch()
    batch.addfile(file)
    del file
    assert take(batch, 1) == content[:1]
    assert alive() is not None
    assert take(batch) == content[1:]
    assert alive() is None


@pytest.mark.parametrize("kind", [str, Path])
def test_path_is_owned(tmp_path: Path, kind: type) -> None:
    """A path is opened at once, not inherited by programs, and closed when used up."""
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    before = fd_count()
    batch = IOBatch()
    batch.addfile(kind(path), 3, 4)
    path.unlink()
    batch.addbuf(b"end")
    assert fd_count() == before + 1
    assert take(batch, 3) == b"345"
    assert fd_count() == before + 1
    assert take(batch, 1) == b"6"
    assert fd_count() == before
    assert take(batch) == b"end"


def test_path_runs_on_release_as_well(tmp_path: Path) -> None:
    """A path's on_release runs when its file is closed already."""
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    before = fd_count()
    seen = []
    batch = IOBatch()
    batch.addfile(path, on_release=lambda: seen.append(fd_count()))
    take(batch)
    assert seen == [before]


@pytest.mark.parametrize("by", ["descriptor", "object", "path"])
def test_count_none_is_to_the_end_as_of_now(tmp_path: Path, by: str) -> None:
    """Without a count the range ends where the file ends now; what grows later is left out."""
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    with path.open("rb") as file:
        thing = {"descriptor": file.fileno(), "object": file, "path": path}[by]
        batch = IOBatch()
        batch.addfile(thing)
        batch.addfile(thing, 6)
        batch.addfile(thing, 10)
        batch.addfile(thing, 11)
        assert batch.bytesleft == 14
        with path.open("ab") as more:
            more.write(b"growing")
        assert take(batch) == b"01234567896789"


@pytest.mark.parametrize("count", [None, 0])
def test_empty_range(tmp_path: Path, count: int | None) -> None:
    """An empty file or range is dropped, its hook runs, and an owned file is closed at once."""
    path = tmp_path / "empty"
    path.write_bytes(b"")
    before = fd_count()
    seen: list[int] = []
    batch = IOBatch()
    batch.addfile(path, 0, count, on_release=lambda: seen.append(1))
    fd = os.open(path, os.O_RDONLY)
    batch.addfile(fd, 0, count, on_release=lambda: seen.append(2))
    batch.addfile_close(fd, 0, count)
    assert (batch.bytesleft, seen, fd_count()) == (0, [1, 2], before)
    check_invariants(batch)


BAD_RANGES: list[tuple[Any, Any, type[Exception]]] = [
    (-1, 5, ValueError),
    (0, -1, ValueError),
    (-1, None, ValueError),
    ("0", 5, TypeError),
    (1.0, 5, TypeError),
    (None, 5, TypeError),
    (0, "5", TypeError),
    (0, 5.0, TypeError),
    (MAX_BYTES, 1, OverflowError),
    (1, MAX_BYTES, OverflowError),
    (0, 2**63, OverflowError),
    (2**64, 2**64, OverflowError),
    (0, MAX_BYTES, OverflowError),  # one byte is in the batch already
]


@pytest.mark.parametrize(("offset", "count", "error"), BAD_RANGES)
def test_bad_range(
    tmp_path: Path, make_file: MakeFile, offset: Any, count: Any, error: type[Exception]
) -> None:
    """A bad offset or count raises before anything changes; only what is owned is closed."""
    fd = make_file(b"0123456789")
    path = tmp_path / "file0"
    batch = IOBatch()
    batch.addbuf(b"1")
    before = fd_count()
    hook: list[int] = []
    with path.open("rb") as file:
        for thing in (fd, file, path, str(path)):
            with pytest.raises(error):
                batch.addfile(thing, offset, count)
            with pytest.raises(error):
                batch.addfile(thing, offset, count, on_release=lambda: hook.append(1))
        assert not file.closed
        for thing in (os.dup(fd), path, str(path)):
            with pytest.raises(error):
                batch.addfile_close(thing, offset, count)
        with pytest.raises(error):
            batch.addfile_close(file, offset, count)
        assert file.closed
    os.fstat(fd)
    assert (fd_count(), hook) == (before, [])
    assert take(batch) == b"1"


@pytest.mark.parametrize("bad", [b"path", None, 1.5, object(), io.BytesIO], ids=repr)
def test_no_file(bad: Any) -> None:
    """What is neither a descriptor nor a path and has no fileno() is refused with TypeError."""
    batch = IOBatch()
    for add in (batch.addfile, batch.addfile_close):
        with pytest.raises(TypeError):
            add(bad, 0, 5)
    assert not batch


@pytest.mark.parametrize("add", ["addfile", "addfile_close"])
def test_file_object_without_descriptor(add: str) -> None:
    """A file that lives in memory only is refused; given away, it is closed all the same."""
    file = io.BytesIO(b"0123456789")
    batch = IOBatch()
    with pytest.raises((TypeError, OSError)):
        getattr(batch, add)(file, 0, 5)
    assert not batch
    assert file.closed is (add == "addfile_close")


def test_negative_descriptor() -> None:
    """A negative descriptor is refused before anything changes."""
    batch = IOBatch()
    for add in (batch.addfile, batch.addfile_close):
        for count in (None, 5):
            with pytest.raises((ValueError, OSError)):
                add(-1, 0, count)
    assert not batch


def test_closed_descriptor_without_count(make_file: MakeFile) -> None:
    """The end of a file that is not open can't be known: EBADF."""
    fd = os.dup(make_file(b"x"))
    os.close(fd)
    for add in (IOBatch().addfile, IOBatch().addfile_close):
        with pytest.raises(OSError, match="Bad file descriptor"):
            add(fd)


def test_directory(tmp_path: Path) -> None:
    """A directory is refused: as a path, and as a descriptor where its size is asked for."""
    batch = IOBatch()
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        for thing in (tmp_path, str(tmp_path), fd):
            with pytest.raises(IsADirectoryError):
                batch.addfile(thing)
        for thing in (tmp_path, str(tmp_path)):
            with pytest.raises(IsADirectoryError):
                batch.addfile(thing, 0, 5)
        with pytest.raises(IsADirectoryError):
            batch.addfile_close(os.dup(fd))
    finally:
        os.close(fd)
    assert not batch


def test_missing_file(tmp_path: Path) -> None:
    """The OSError of an open that failed is raised."""
    batch = IOBatch()
    for add in (batch.addfile, batch.addfile_close):
        with pytest.raises(FileNotFoundError):
            add(tmp_path / "missing", 0, 5)
    assert not batch


def test_pipe_has_no_end() -> None:
    """Without a count what is no regular file is refused, and closed if it was given away."""
    out, into = os.pipe()
    os.close(into)
    batch = IOBatch()
    with pytest.raises(ValueError):
        batch.addfile(out)
    with pytest.raises(ValueError):
        batch.addfile_close(out)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(out)


# Ownership


def test_addfile_close_of_a_descriptor(make_file: MakeFile) -> None:
    """An owned descriptor is closed when its last byte was accepted, not at the batch's end."""
    fd = os.dup(make_file(b"0123456789"))
    batch = IOBatch()
    batch.addfile_close(fd, 0, 4)
    batch.addbuf(b"end")
    take(batch, 3)
    os.fstat(fd)
    take(batch, 1)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    assert batch.bytesleft == 3
    batch.reset()


def test_addfile_close_of_an_object(tmp_path: Path) -> None:
    """An owned object is closed by its own close(), once."""
    closed = []

    class File(io.FileIO):
        def close(self) -> None:
            if not self.closed:
                closed.append(self.fileno())
            super().close()

    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    batch = IOBatch()
    file = File(path)
    fd = file.fileno()
    batch.addfile_close(file)
    assert take(batch, 9) == b"012345678"
    assert closed == []
    assert take(batch) == b"9"
    assert closed == [fd]


def test_addfile_close_of_a_path(tmp_path: Path) -> None:
    """A path given to addfile_close is opened and closed like one given to addfile."""
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    before = fd_count()
    batch = IOBatch()
    batch.addfile_close(path, 1, 3)
    batch.addfile_close(str(path), 5)
    assert fd_count() == before + 2
    assert take(batch) == b"12356789"
    assert fd_count() == before


def test_addfile_close_without_close() -> None:
    """An object that can't be closed can't be owned."""
    batch = IOBatch()
    with pytest.raises(TypeError):
        batch.addfile_close(Borrowed(0), 0, 1)  # type: ignore[arg-type]
    assert not batch


@pytest.mark.parametrize("fails", [False, True])
def test_addfile_close_without_fileno(*, fails: bool) -> None:
    """An object without fileno() is closed and refused; the first error is the one to see."""
    closed: list[str] = []
    batch = IOBatch()
    with pytest.raises(TypeError):
        batch.addfile_close(failing_file(closed=closed, fails=fails), 0, 1)
    assert closed == ["closed"]
    assert not batch


def test_addfile_close_when_fileno_fails() -> None:
    """A closed file object is refused with the error of its fileno()."""
    with (Path(__file__)).open("rb") as file:
        pass
    batch = IOBatch()
    for add in (batch.addfile, batch.addfile_close):
        with pytest.raises(ValueError, match="closed file"):
            add(file, 0, 1)
    assert not batch


def test_failing_close_is_reported(
    make_file: MakeFile, unraisable: list[BaseException | None]
) -> None:
    """A close that fails after the last byte is reported as unraisable, and sending goes on."""
    fd = make_file(b"0123456789")
    error = OSError(errno.EIO, "scripted")

    class File:
        def fileno(self) -> int:
            return fd

        def close(self) -> None:
            raise error

    batch = IOBatch()
    batch.addfile_close(File(), 0, 4)
    batch.addbuf(b"end")
    assert take(batch) == b"0123end"
    assert unraisable == [error]
    assert batch.error is None


def test_reset_closes_what_is_owned(tmp_path: Path, make_file: MakeFile) -> None:
    """reset() closes what is owned and nothing else, also what was sent in part."""
    fd = make_file(b"0123456789")
    before = fd_count()
    batch = IOBatch()
    batch.addfile_close(os.dup(fd))
    batch.addfile(tmp_path / "file0")
    batch.addfile(fd)
    batch.addfile_close((tmp_path / "file0").open("rb"))
    take(batch, 5)
    batch.reset()
    assert fd_count() == before
    os.fstat(fd)


def test_collection_closes_with_a_warning(tmp_path: Path, make_file: MakeFile) -> None:
    """What is owned and not reset is closed when the batch is collected, with ResourceWarning."""
    fd = os.dup(make_file(b"0123456789"))
    before = fd_count()
    batch = IOBatch()
    batch.addfile_close(fd)
    batch.addfile(tmp_path / "file0")
    last = [batch]
    del batch
    with pytest.warns(ResourceWarning) as caught:
        last.clear()
    assert len(caught) == 1
    assert fd_count() == before - 1


def test_collection_closes_even_if_the_warning_raises(
    make_file: MakeFile, unraisable: list[BaseException | None]
) -> None:
    """Where warnings are errors, a collected batch closes and releases all the same."""
    fd = os.dup(make_file(b"0123456789"))
    seen: list[str] = []
    batch = IOBatch()
    batch.addfile_close(fd)
    batch.addbuf(b"x", on_release=lambda: seen.append("released"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", ResourceWarning)
            del batch
            gc.collect()
        assert seen == ["released"]
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
        assert [type(exc) for exc in unraisable] == [ResourceWarning]
    finally:
        if not seen:
            os.close(fd)


def test_collection_without_owned_files_is_silent(make_file: MakeFile) -> None:
    """A batch that owns nothing is collected without a warning; its hooks run."""
    seen: list[str] = []
    buffer = bytearray(b"held")
    batch = IOBatch()
    batch.addbuf(buffer, on_release=lambda: seen.append("buffer"))
    batch.addfile(make_file(b"x"), on_release=lambda: seen.append("file"))
    del batch
    gc.collect()
    assert seen == ["buffer", "file"]
    buffer.append(0)


def test_collection_in_a_cycle(make_file: MakeFile) -> None:
    """A batch whose own hook refers to it is collected as well, and releases once."""
    fd = os.dup(make_file(b"x"))
    seen: list[int] = []
    batch = IOBatch()
    batch.addfile_close(fd)
    batch.addbuf(b"1", on_release=lambda batch=batch: seen.append(batch.bytesleft))
    del batch
    with pytest.warns(ResourceWarning):
        gc.collect()
    assert len(seen) == 1
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_exit_of_the_interpreter(tmp_path: Path) -> None:
    """A batch that lives up to the interpreter's end makes no noise but its ResourceWarning."""
    path = tmp_path / "file"
    path.write_bytes(b"x")
    code = """
import sys
from iobatch import IOBatch
batch = IOBatch()
batch.addfile(sys.argv[1])
batch.addbuf(bytearray(5), on_release=print)
"""
    done = run_python(code, str(path))
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")


# extend, prepend, prefetch, reset


def test_extend_moves_everything(tmp_path: Path, make_file: MakeFile) -> None:
    """extend() moves all entries, with their hooks and owned files, behind this batch's own."""
    fd = make_file(b"0123456789")
    seen: list[str] = []
    one, other = IOBatch(), IOBatch()
    one.addbuf(b"one ")
    other.addbuf(bytearray(b"other "), on_release=lambda: seen.append("released"))
    other.addfile(fd, 0, 3)
    other.addfile(tmp_path / "file0", 5, 2)
    before = fd_count()
    one.extend(other)
    assert (other.bytesleft, bool(other), one.bytesleft) == (0, False, 15)
    check_invariants(one)
    check_invariants(other)
    other.reset()
    del other
    gc.collect()
    assert (seen, fd_count()) == ([], before)
    assert take(one) == b"one other 01256"
    assert (seen, fd_count()) == (["released"], before - 1)


def test_extend_keeps_both_counts() -> None:
    """Each bytessent counts what each batch sent itself, and an emptied batch can be used again."""
    one, other = IOBatch(), IOBatch()
    one.addbuf(b"12345")
    take(one)
    other.addbuf(b"123")
    take(other, 2)
    one.extend(other)
    assert (one.bytessent, other.bytessent) == (5, 2)
    one.extend(other)  # nothing, now
    other.addbuf(b"new")
    assert (take(one), take(other)) == (b"3", b"new")


def test_extend_salvages_a_failed_batch() -> None:
    """extend() moves what a failed batch still holds, and never its error."""
    failed, batch = IOBatch(), IOBatch()
    failed.addbuf(b"still here")
    assert iob_write(None, failed, lambda _sock, _view: -3) == IOB_ERROR
    batch.extend(failed)
    assert batch.error is None
    assert failed.error is not None
    assert take(batch) == b"still here"
    assert iob_write(None, failed, lambda _sock, view: len(view)) == IOB_ERROR


def test_extend_refuses() -> None:
    """extend() of itself, of what is no batch, and past 2**63 - 1 bytes changes nothing."""
    batch, other = IOBatch(), IOBatch()
    batch.addbuf(b"1")
    with pytest.raises(ValueError):
        batch.extend(batch)
    for bad in (b"bytes", None, [b"1"]):
        with pytest.raises(TypeError):
            batch.extend(bad)  # type: ignore[arg-type]
    other.addfile(0, 0, MAX_BYTES)
    with pytest.raises(OverflowError):
        batch.extend(other)
    assert (batch.bytesleft, other.bytesleft) == (1, MAX_BYTES)
    check_invariants(batch)
    check_invariants(other)


def test_prepend() -> None:
    """prepend() puts a buffer in front of what is left, also of an entry sent in part."""
    seen: list[int] = []
    batch = IOBatch()
    batch.prepend(b"first ")
    batch.addbuf(b"0123456789")
    assert take(batch, 9) == b"first 012"
    batch.prepend(bytearray(b" second "), on_release=lambda: seen.append(batch.bytesleft))
    assert batch.bytesleft == 15
    check_invariants(batch)
    assert take(batch) == b" second 3456789"
    assert seen == [7]


def test_prepend_of_a_file_sent_in_part(make_file: MakeFile) -> None:
    """prepend() goes in front of the rest of a file range, whatever of it was read."""
    content = data(300_000)
    batch = IOBatch()
    batch.addfile(make_file(content))
    assert take(batch, 1000) == content[:1000]
    batch.prepend(b"between")
    assert take(batch) == b"between" + content[1000:]


def test_prepend_while_pinned() -> None:
    """While an offer is pinned, prepend() raises and changes nothing; afterwards it works."""
    batch = IOBatch()
    batch.addbuf(b"pinned")
    assert iob_write(None, batch, lambda _sock, _view: None) == IOB_AGAIN
    hook: list[int] = []
    for buffer in (b"before", b""):
        with pytest.raises(RuntimeError):
            batch.prepend(buffer, on_release=lambda: hook.append(1))
    assert (batch.bytesleft, hook) == (6, [])
    assert iob_write(None, batch, lambda _sock, _view: 1) == 1
    batch.prepend(b"before ")
    assert take(batch) == b"before inned"


def test_overflow() -> None:
    """Sums past 2**63 - 1 raise OverflowError before anything changes."""
    batch = IOBatch()
    batch.addfile(0, 0, MAX_BYTES - 1)
    buffer = bytearray(2)
    hook: list[int] = []
    for add in (batch.addbuf, batch.prepend):
        for too_long in (b"12", buffer):
            with pytest.raises(OverflowError):
                add(too_long)
        with pytest.raises(OverflowError):
            add(buffer, on_release=lambda: hook.append(1))
    with pytest.raises(OverflowError):
        batch.adds("12")
    assert (batch.bytesleft, hook) == (MAX_BYTES - 1, [])
    buffer.append(0)
    batch.addbuf(b"1")
    assert batch.bytesleft == MAX_BYTES
    check_invariants(batch)


def test_prefetch_starts_at_the_current_position(
    make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """prefetch() asks for the next nbytes of file ranges from where sending is, across entries."""
    asked: list[tuple[int, ...]] = []
    patch_os(monkeypatch, "posix_fadvise", lambda *args: asked.append(args))
    content = data(400_000)
    one, other = make_file(content), make_file(content)
    willneed = os.POSIX_FADV_WILLNEED
    batch = IOBatch()
    batch.addfile(one, 10, 300_000)
    batch.addbuf(bytes(1000))
    batch.addfile(other, 5, 200_000)
    batch.addfile(one, 0, 100_000)
    batch.prefetch(300_000 + 50_000)
    assert asked == [(one, 10, 300_000, willneed), (other, 5, 50_000, willneed)]
    asked.clear()
    with Scripted() as sock:
        while iob_send(sock, batch, limit=200_000, flags=1) > 0 and batch.bytessent < 200_000:
            pass
    rest = 10 + batch.bytessent
    batch.prefetch(1)
    assert len(asked) == 1
    assert asked[0][0] == one
    assert asked[0][1] >= rest
    asked.clear()
    batch.prefetch(2**63)
    assert [(fd, offset + count) for fd, offset, count, _ in asked] == [
        (one, 300_010),
        (other, 200_005),
        (one, 100_000),
    ]
    asked.clear()
    batch.prefetch(0)
    assert asked == []
    batch.reset()
    batch.prefetch(10)
    assert asked == []


def test_prefetch_is_advice_only(make_file: MakeFile) -> None:
    """prefetch() changes nothing, and a fault of a descriptor shows when it is sent, not here."""
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
def test_prefetch_refuses(bad: Any, error: type[Exception]) -> None:
    """prefetch() takes a number of bytes that is not negative."""
    with pytest.raises(error):
        IOBatch().prefetch(bad)


def test_reset() -> None:
    """reset() drops what is left and clears counts, error and wants; the batch works again."""
    batch = IOBatch()
    batch.addbuf(b"0123456789")
    take(batch, 4)

    def callback(_sock: None, _view: memoryview) -> int:
        raise ssl.SSLWantReadError

    assert iob_write(None, batch, callback) == IOB_AGAIN
    assert batch.wants == selectors.EVENT_READ
    batch.reset()
    assert batch.wants == selectors.EVENT_WRITE
    batch.addbuf(b"0123456789")
    take(batch, 4)
    assert iob_write(None, batch, lambda _sock, _view: -3) == IOB_ERROR
    batch.reset()
    check_invariants(batch)
    assert (batch.bytesleft, batch.bytessent, batch.error) == (0, 0, None)
    assert batch.wants == selectors.EVENT_WRITE
    batch.addbuf(b"again")
    assert take(batch) == b"again"
    batch.reset()
    batch.reset()


def test_reset_drops_a_pin() -> None:
    """After reset() nothing is pinned any more."""
    batch = IOBatch()
    batch.addbuf(b"0123456789")
    assert iob_write(None, batch, lambda _sock, _view: -1, limit=7) == IOB_AGAIN
    batch.reset()
    batch.prepend(b"new")
    assert take(batch) == b"new"


@pytest.mark.parametrize("fails", [False, True])
def test_with(tmp_path: Path, *, fails: bool) -> None:
    """Leaving a with block resets the batch, also by an exception, which goes on."""
    path = tmp_path / "file"
    path.write_bytes(b"x")
    before = fd_count()
    batch = IOBatch()
    try:
        with batch as same:
            assert same is batch
            batch.addfile(path)
            assert fd_count() == before + 1
            if fails:
                raise KeyError  # any
    except KeyError:
        assert fails
    assert (batch.bytesleft, fd_count()) == (0, before)


def test_repr(make_file: MakeFile) -> None:
    """The repr tells in every state what is left, what was sent, and the error."""
    batch = IOBatch()
    assert "IOBatch" in repr(batch)
    batch.addbuf(bytearray(1234), on_release=lambda: None)
    batch.addbuf(bytes(4321))
    batch.addfile(make_file(data(100)))
    assert "5655" in repr(batch)
    take(batch, 34)
    assert "5621" in repr(batch)
    assert "34" in repr(batch)
    take(batch, 1200)
    assert "4421" in repr(batch)
    take(batch, 4321)
    assert "100" in repr(batch)
    iob_write(None, batch, lambda _sock, _view: 0)
    assert "BrokenPipeError" in repr(batch)
    other = IOBatch()
    other.addfile(make_file(data(77)))
    assert "77" in repr(other)
    batch.reset()


# on_release


def test_release_moment_and_order() -> None:
    """Each hook runs once, in order, as soon as its entry's last byte was accepted."""
    batch = IOBatch()
    seen: list[str] = []
    for name in ("one", "two", "three"):
        batch.addbuf(name.encode(), on_release=lambda name=name: seen.append(name))
        batch.addbuf(b"-")
    states = {}
    while batch:
        take(batch, 1)
        states[batch.bytessent] = list(seen)
    assert states[2] == []
    assert states[3] == states[4] == states[6] == ["one"]
    assert states[7] == states[12] == ["one", "two"]
    assert states[13] == states[14] == ["one", "two", "three"]
    batch.reset()
    del batch
    gc.collect()
    assert seen == ["one", "two", "three"]


def test_releases_of_one_call() -> None:
    """What one call accepts is released in order, and each hook runs once."""
    batch = IOBatch()
    seen: list[int] = []
    for i in range(100):
        batch.addbuf(b"x", on_release=lambda i=i: seen.append(i))
    with Scripted() as sock:
        assert iob_send(sock, batch) == 100
    assert seen == list(range(100))


def test_release_at_reset() -> None:
    """reset() runs the hooks of what is left, in order, each once, with views released."""
    batch = IOBatch()
    seen: list[int] = []
    buffers = [bytearray(b"ab") for _ in range(3)]

    def hook(i: int) -> None:
        for buffer in buffers:
            buffer.append(0)
        seen.append(i)
        assert (batch.bytesleft, batch.bytessent) == (0, 0)

    for i, buffer in enumerate(buffers):
        batch.addbuf(buffer, on_release=lambda i=i: hook(i))
    take(batch, 1)
    batch.reset()
    assert seen == [0, 1, 2]
    batch.reset()
    assert seen == [0, 1, 2]


def test_bytearray_is_free_in_its_own_hook() -> None:
    """A hook can resize its buffer: the view is released before the hook runs."""
    batch = IOBatch()
    buffer = bytearray(b"0123456789")
    batch.addbuf(buffer, on_release=lambda: buffer.extend(b"!"))
    take(batch, 4)
    take(batch)
    assert buffer == b"0123456789!"


@pytest.mark.parametrize("flags", [0, 1])
def test_bytearray_is_free_in_its_own_hook_of_a_send(flags: int) -> None:
    """The same after iob_send, for a lone buffer and for one among others."""
    for others in (b"", bytearray(b"other")):
        buffer = bytearray(b"0123456789")
        batch = IOBatch()
        batch.addbuf(others)
        batch.addbuf(buffer, on_release=lambda buffer=buffer: buffer.extend(b"!"))
        with Scripted(3, len(others) + 2) as sock:
            while iob_send(sock, batch, flags=flags) > 0:
                pass
        assert buffer == b"0123456789!"


@pytest.mark.parametrize("kind", ["bytearray", "array"])
def test_bytearray_is_free_after_an_error(kind: str) -> None:
    """After an error and reset() a buffer can be resized, even while the caller keeps the error."""
    for position in (0, 3):
        buffer: Any = bytearray(40) if kind == "bytearray" else array.array("I", range(10))
        batch = IOBatch()
        batch.addbuf(buffer)
        batch.addbuf(bytearray(10))
        with Scripted(position or OSError(errno.EIO, "scripted"), OSError(errno.EIO, "s")) as sock:
            while iob_send(sock, batch) > 0:
                pass
        error = batch.error
        assert isinstance(error, OSError)
        with pytest.raises(BufferError):
            buffer.append(0)
        batch.reset()
        buffer.append(0)
        assert error.__traceback__ is None


def test_bytearray_is_free_after_a_callback_error() -> None:
    """The same for an error of a callback, raised while it handled another one."""

    def callback(_sock: None, view: memoryview) -> int:
        try:
            raise KeyError(view)
        except KeyError as exc:
            raise OSError(errno.EIO, "scripted") from exc

    buffer = bytearray(b"0123456789")
    batch = IOBatch()
    batch.addbuf(buffer)
    assert iob_write(None, batch, callback) == IOB_ERROR
    error = batch.error
    assert isinstance(error, OSError)
    assert error.__traceback__ is error.__context__ is error.__cause__ is None
    batch.reset()
    buffer.append(0)


def test_bytearray_is_free_after_collection() -> None:
    """Collection releases explicitly: a buffer can be resized at once."""
    buffer = bytearray(b"0123456789")
    batch = IOBatch()
    batch.addbuf(buffer)
    take(batch, 3)
    del batch
    buffer.append(0)


def test_hook_that_is_not_callable(make_file: MakeFile) -> None:
    """An on_release that can't be called is refused before anything changes."""
    fd = make_file(b"x")
    batch = IOBatch()
    for add in (
        lambda hook: batch.addbuf(b"x", on_release=hook),
        lambda hook: batch.prepend(b"x", on_release=hook),
        lambda hook: batch.addfile(fd, on_release=hook),
        lambda hook: batch.addfile(__file__, on_release=hook),
    ):
        with pytest.raises(TypeError):
            add(5)
    assert not batch


def test_hook_that_raises(unraisable: list[BaseException | None]) -> None:
    """A hook that raises is reported by sys.unraisablehook; the others run and sending goes on."""
    batch = IOBatch()
    seen: list[str] = []
    errors = [ValueError("scripted"), SystemExit(1)]

    def fail(error: BaseException) -> None:
        raise error

    for error in errors:
        batch.addbuf(b"x", on_release=lambda error=error: fail(error))
        batch.addbuf(b"y", on_release=lambda: seen.append("y"))
    assert take(batch) == b"xyxy"
    assert unraisable == errors
    assert seen == ["y", "y"]
    for error in errors:
        batch.addbuf(b"x", on_release=lambda error=error: fail(error))
    batch.reset()
    batch.addbuf(b"", on_release=lambda: fail(errors[0]))
    assert unraisable == [*errors, *errors, errors[0]]
    check_invariants(batch)


def test_unraisablehook_gets_what_it_needs(capsys: pytest.CaptureFixture[str]) -> None:
    """The default sys.unraisablehook prints the hook's traceback."""

    def failing_hook() -> None:
        raise ValueError("scripted")

    batch = IOBatch()
    batch.addbuf(b"x", on_release=failing_hook)
    hook, sys.unraisablehook = sys.unraisablehook, sys.__unraisablehook__
    try:
        assert take(batch) == b"x"
    finally:
        sys.unraisablehook = hook
    printed = capsys.readouterr().err
    assert "ValueError: scripted" in printed
    assert "failing_hook" in printed


def test_hook_runs_after_the_accounting() -> None:
    """In a hook the counts are those after the bytes that released it."""
    batch = IOBatch()
    seen: list[tuple[int, int]] = []
    batch.addbuf(b"12345", on_release=lambda: seen.append((batch.bytesleft, batch.bytessent)))
    batch.addbuf(b"678")
    take(batch, 5)
    assert seen == [(3, 5)]


def test_hook_may_add(tmp_path: Path) -> None:
    """A hook may add entries, while sending and at reset()."""
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    batch, other = IOBatch(), IOBatch()
    other.addbuf(b"other ")

    def hook() -> None:
        batch.addbuf(b"added ")
        batch.extend(other)
        batch.addfile(path, 0, 4)
        batch.prepend(b"between ")

    batch.addbuf(b"one ", on_release=hook)
    batch.addbuf(b"two ")
    with Scripted() as sock:
        while iob_send(sock, batch) > 0:
            check_invariants(batch)
    assert sock.taken in (b"one between two added other 0123", b"one two between added other 0123")
    batch.addbuf(b"x", on_release=lambda: batch.addbuf(b"after reset"))
    batch.reset()
    assert take(batch) == b"after reset"


def test_hook_that_refills_forever_is_cut_by_the_limit() -> None:
    """A hook that adds a new entry each time can't make one call endless."""
    batch = IOBatch()
    on_release: list[Callable[[], None]] = []

    def refill() -> None:
        batch.addbuf(bytes(1000), on_release=on_release[0])

    on_release.append(refill)
    refill()
    with Scripted() as sock:
        assert 0 < iob_send(sock, batch, limit=10_000) <= 10_000
    assert 0 < iob_write(None, batch, lambda _sock, view: len(view), limit=10_000) <= 10_000
    on_release[0] = lambda: None
    batch.reset()
    batch.reset()


@pytest.mark.parametrize("when", ["send", "write", "sendmsg", "reset", "added empty"])
def test_hook_may_not_send_or_reset(when: str) -> None:
    """Sending or resetting a batch from its own hook is a RuntimeError."""
    errors: list[type[BaseException]] = []
    batch, other = IOBatch(), IOBatch()
    with Scripted() as sock, Scripted() as unused:

        def hook() -> None:
            for forbidden in (
                lambda: iob_send(unused, batch),
                lambda: iobatch.iob_sendmsg(unused, batch),
                lambda: iob_write(unused, batch, lambda _sock, view: len(view)),
                lambda: iobatch.iob_sendall(unused, batch),
                batch.reset,
                lambda: other.extend(batch),
            ):
                try:
                    forbidden()
                except RuntimeError as exc:
                    errors.append(type(exc))
                else:
                    errors.append(AssertionError)

        batch.addbuf(b"" if when == "added empty" else b"one", on_release=hook)
        batch.addbuf(b"two")
        if when == "send":
            assert iob_send(sock, batch) == 6
        elif when == "write":
            assert take(batch) == b"onetwo"
        elif when == "sendmsg":
            assert iobatch.iob_sendmsg(sock, batch) == 6
        elif when == "reset":
            batch.reset()
        assert unused.calls == []
    assert errors == [RuntimeError] * 6
    check_invariants(batch)


def test_hook_may_send_another_batch() -> None:
    """Only the batch itself is locked in its hook: another one can be sent."""
    batch, other = IOBatch(), IOBatch()
    other.addbuf(b"other")
    with Scripted() as sock:
        batch.addbuf(b"one", on_release=lambda: iob_send(sock, other))
        assert iob_send(sock, batch) == 3
        assert sock.taken == b"oneother"


# Errors


def test_truncated_file_error() -> None:
    """TruncatedFileError is an OSError with an errno, and says which file, where, and how much."""
    error = TruncatedFileError(7, 1000, 24)
    assert isinstance(error, OSError)
    assert (error.fd, error.offset, error.missing) == (7, 1000, 24)
    assert error.errno
    assert "7" in str(error)
    assert "1000" in str(error)
    assert "24" in str(error)


def test_truncated_file_error_can_be_pickled_and_copied() -> None:
    """TruncatedFileError comes back whole from another process."""
    for error in (
        pickle.loads(pickle.dumps(TruncatedFileError(7, 1000, 24))),
        copy.copy(TruncatedFileError(7, 1000, 24)),
    ):
        assert (error.fd, error.offset, error.missing) == (7, 1000, 24)
        assert str(error) == str(TruncatedFileError(7, 1000, 24))


def test_nothing_can_be_added_to_a_batch_that_is_collected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hook that adds to its batch during collection fails, and what it gave is closed."""
    path = tmp_path / "file"
    path.write_bytes(b"content")
    raised: list[type[BaseException] | None] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: raised.append(args.exc_type))
    fd = os.open(path, os.O_RDONLY)

    def make() -> None:
        # The batch is in a cycle with its own hook, as it is where a hook refills it.
        batch = IOBatch()
        batch.addbuf(b"x", on_release=lambda: batch.addfile_close(fd, 0, 5))

    make()
    gc.collect()
    assert raised == [OverflowError]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_hook_that_raises_keeps_nothing_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a hook raised does not hold the batch, nor its buffers, until the next collection."""
    monkeypatch.setattr(sys, "unraisablehook", lambda _args: None)
    buffer = bytearray(100)
    batch = IOBatch()

    def fail() -> None:
        raise ValueError

    gc.disable()
    try:
        batch.addbuf(b"x", on_release=fail)
        batch.addbuf(buffer)
        with Scripted() as sock:
            assert iob_send(sock, batch, limit=50) == 50
        batch.reset()
        buffer.append(1)
        gone = weakref.ref(batch)
        del batch
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("fd", [2**31, 2**63, Borrowed(2**31)])
def test_no_descriptor_is_so_large(fd: Any) -> None:
    """What no system call takes as a descriptor is refused when it is added."""
    batch = IOBatch()
    with pytest.raises(OverflowError):
        batch.addfile(fd, 0, 10)
    assert not batch
    check_invariants(batch)


def test_a_batch_is_not_copied() -> None:
    """Two batches with the same entries would release them twice."""
    batch = IOBatch()
    for duplicate in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError):
            duplicate(batch)
