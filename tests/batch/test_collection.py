"""Collection: a batch that is collected without reset()."""

from __future__ import annotations

import gc
import os
import sys
import warnings
from typing import TYPE_CHECKING

import pytest

from iobatch import IOBatch, iob_send
from tests.support.fakes import Scripted
from tests.support.programs import run_python
from tests.support.sockets import fd_count

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.batches import MakeFile


def test_collected_batch_closes_owned_files_with_one_resource_warning(
    tmp_path: Path, make_file: MakeFile
) -> None:
    fd = os.dup(make_file(b"0123456789"))
    before = fd_count()
    batch = IOBatch()
    batch.addfile_close(fd)
    batch.addfile(tmp_path / "file0")
    references = [batch]
    del batch
    with pytest.warns(ResourceWarning) as caught:
        references.clear()
    assert len(caught) == 1
    assert fd_count() == before - 1


def test_collected_batch_closes_and_releases_where_warnings_are_errors(
    make_file: MakeFile, unraisable: list[BaseException | None]
) -> None:
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


def test_collected_batch_without_owned_files_warns_of_nothing(make_file: MakeFile) -> None:
    """Its hooks run, and its buffers are released."""
    seen: list[str] = []
    buffer = bytearray(b"held")
    batch = IOBatch()
    batch.addbuf(buffer, on_release=lambda: seen.append("buffer"))
    batch.addfile(make_file(b"x"), on_release=lambda: seen.append("file"))
    del batch
    gc.collect()
    assert seen == ["buffer", "file"]
    buffer.append(0)


def test_batch_in_a_cycle_with_its_hook_is_collected_and_released_once(make_file: MakeFile) -> None:
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


def test_interpreter_exit_with_an_unsent_batch_prints_nothing(tmp_path: Path) -> None:
    """Python's default filters ignore the ResourceWarning."""
    path = tmp_path / "file"
    path.write_bytes(b"x")
    code = """
import sys
from iobatch import IOBatch, iob_send
batch = IOBatch()
batch.addfile(sys.argv[1])
batch.addbuf(bytearray(5), on_release=print)
"""
    result = run_python(code, str(path))
    assert (result.returncode, result.stdout.strip(), result.stderr) == (0, "", "")


def test_hook_cannot_add_to_a_batch_that_is_collected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sys.unraisablehook gets an OverflowError, and the file that the hook passed is closed."""
    path = tmp_path / "file"
    path.write_bytes(b"content")
    raised: list[type[BaseException] | None] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: raised.append(args.exc_type))
    fd = os.open(path, os.O_RDONLY)

    def make() -> None:
        # The hook refers to its batch, as a hook that refills a batch does.
        batch = IOBatch()
        batch.addbuf(b"x", on_release=lambda: batch.addfile_close(fd, 0, 5))

    make()
    gc.collect()
    assert raised == [OverflowError]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_collected_batch_releases_all_after_the_keyboard_interrupt_of_a_hook(
    make_file: MakeFile, unraisable: list[BaseException | None]
) -> None:
    """No later call could resume the release."""
    fd = os.dup(make_file(b"0123456789"))
    seen: list[str] = []

    def hook() -> None:
        seen.append("first")
        raise KeyboardInterrupt

    batch = IOBatch()
    batch.addbuf(b"x", on_release=hook)
    batch.addfile_close(fd)
    batch.addbuf(b"y", on_release=lambda: seen.append("last"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        del batch
    assert seen == ["first", "last"]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    assert [type(exc) for exc in unraisable] == [KeyboardInterrupt]


def test_collected_batch_releases_what_is_left_after_a_release_was_interrupted(
    make_file: MakeFile,
) -> None:
    """The interrupted release was that of entries that were sent."""
    fd = os.dup(make_file(b"0123456789"))
    seen: list[str] = []

    def hook() -> None:
        seen.append("first")
        raise KeyboardInterrupt

    batch = IOBatch()
    batch.addbuf(b"x", on_release=hook)
    batch.addbuf(b"y", on_release=lambda: seen.append("second"))
    batch.addfile_close(fd)
    with Scripted(1) as sock, pytest.raises(KeyboardInterrupt):
        iob_send(sock, batch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        del batch
    assert seen == ["first", "second"]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_error_in_the_release_of_a_collected_batch_is_reported_once(
    monkeypatch: pytest.MonkeyPatch, unraisable: list[BaseException | None]
) -> None:
    """A release that lacks memory is not repeated without end."""

    def fail(_core: object) -> None:
        raise MemoryError

    batch = IOBatch()
    batch.addbuf(b"x", on_release=int)
    with monkeypatch.context() as patch:
        patch.setattr("iobatch._core.BatchCore.release_entries", fail)
        del batch
    assert [type(exc) for exc in unraisable] == [MemoryError]
