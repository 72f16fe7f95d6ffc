"""Paths: addfile() and addfile_close() open them without waiting."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from iobatch import IOB_ERROR, IOBatch, iob_write
from iobatch._batch import core_of
from tests.support.batches import take
from tests.support.fakes import patch_os
from tests.support.interruptions import raise_from_handler
from tests.support.programs import environment
from tests.support.sockets import fd_count

if TYPE_CHECKING:
    from collections.abc import Iterator

both_calls = pytest.mark.parametrize("add", ["addfile", "addfile_close"])
counts = pytest.mark.parametrize("count", [None, 0, 5])


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


@pytest.fixture
def leased(tmp_path: Path) -> Iterator[Path]:
    """Make a file under a write lease that its holder does not give up."""
    path = tmp_path / "leased"
    path.write_bytes(b"0123456789")
    fd = os.open(path, os.O_RDWR)
    # By SIGIO the kernel asks the holder to end the lease.
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    yield path
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    signal.signal(signal.SIGIO, before)
    os.close(fd)


@both_calls
@counts
@pytest.mark.parametrize("kind", [str, os.fsencode, Path])
def test_fifo_without_a_writer_is_refused_at_once(
    fifo: Path, add: str, count: int | None, kind: Any
) -> None:
    """A FIFO has no offsets, so a count does not help."""
    batch = IOBatch()
    with pytest.raises(ValueError):
        getattr(batch, add)(kind(fifo), 0, count)
    assert not batch


@counts
def test_fifo_with_a_writer_is_refused_and_loses_no_byte(fifo: Path, count: int | None) -> None:
    reading = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    writing = os.open(fifo, os.O_WRONLY)
    try:
        os.write(writing, b"0123456789")
        with pytest.raises(ValueError):
            IOBatch().addfile(fifo, 0, count)
        assert os.read(reading, 100) == b"0123456789"
    finally:
        os.close(reading)
        os.close(writing)


@counts
def test_terminal_is_refused(count: int | None) -> None:
    main, terminal = os.openpty()
    try:
        with pytest.raises(ValueError):
            IOBatch().addfile(os.ttyname(terminal), 0, count)
    finally:
        os.close(main)
        os.close(terminal)


def test_terminal_does_not_become_the_controlling_terminal() -> None:
    main, terminal = os.openpty()
    code = (
        "import sys; from contextlib import suppress; from iobatch import IOBatch\n"
        "with suppress(ValueError): IOBatch().addfile(sys.argv[1], 0, 5)\n"
        "try: open('/dev/tty')\n"
        "except OSError as exc: print(exc.errno)\n"
    )
    try:
        result = subprocess.run(
            [sys.executable, "-c", code, os.ttyname(terminal)],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
            env=environment(),
            start_new_session=True,
        )
        assert result.stdout == f"{errno.ENXIO}\n"
    finally:
        os.close(main)
        os.close(terminal)


def test_device_with_offsets_is_sent_if_its_count_is_given() -> None:
    batch = IOBatch()
    with pytest.raises(ValueError):
        batch.addfile("/dev/zero")
    batch.addfile("/dev/zero", 7, 100)
    assert take(batch) == bytes(100)


@both_calls
def test_file_under_a_write_lease_is_refused_as_busy_and_not_as_again(
    leased: Path, add: str
) -> None:
    batch = IOBatch()
    with pytest.raises(OSError, match="lease") as caught:
        getattr(batch, add)(leased, 0, 5)
    assert not isinstance(caught.value, BlockingIOError)
    assert (caught.value.errno, caught.value.filename) == (errno.EBUSY, leased)
    assert not batch


def test_callback_that_adds_a_leased_file_fails_and_does_not_wait(leased: Path) -> None:
    """After a BlockingIOError iob_write would wait for a socket that is ready."""
    batch = IOBatch()
    batch.addbuf(b"data")

    def callback(_sock: None, _view: memoryview) -> int:
        IOBatch().addfile(leased)
        raise AssertionError

    assert iob_write(None, batch, callback) == IOB_ERROR
    assert batch.error is not None
    assert batch.error.errno == errno.EBUSY


def test_file_under_a_read_lease_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    with path.open("rb") as file:
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        batch = IOBatch()
        batch.addfile(path)
        assert take(batch) == b"0123456789"


@pytest.mark.parametrize("path", ["/dev/zero", __file__])
def test_opened_file_is_blocking(path: str) -> None:
    """A read that fails with EAGAIN would be taken for a full socket."""
    with IOBatch() as batch:
        batch.addfile(path, 0, 5)
        assert os.get_blocking(core_of(batch).head[0])


def test_error_of_a_directory_names_its_path(tmp_path: Path) -> None:
    for path in (tmp_path, str(tmp_path), os.fsencode(tmp_path)):
        with pytest.raises(IsADirectoryError) as caught:
            IOBatch().addfile(path, 0, 5)
        assert caught.value.filename == path


def test_path_with_a_null_character_is_refused() -> None:
    for path in ("a\0b", b"a\0b"):
        with pytest.raises(ValueError):
            IOBatch().addfile(path)


@pytest.mark.parametrize("function", ["open", "lseek", "set_blocking"])
def test_exception_of_a_signal_handler_is_not_taken_for_the_error_of_the_call(
    monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    """The file is closed."""
    before = fd_count()
    patch_os(monkeypatch, function, raise_from_handler)
    with pytest.raises(BlockingIOError, match="from a handler"):
        IOBatch().addfile(__file__)
    monkeypatch.undo()
    assert fd_count() == before


def test_path_is_opened_where_there_is_no_o_nonblock(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows, where set_blocking() takes no files."""
    monkeypatch.setattr("iobatch._files._NONBLOCK", 0)
    monkeypatch.delattr(os, "set_blocking")
    batch = IOBatch()
    batch.addfile(__file__)
    assert take(batch) == Path(__file__).read_bytes()
