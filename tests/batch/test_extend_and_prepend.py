"""The order of entries: extend() and prepend()."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import pytest

from iobatch import IOB_AGAIN, IOB_ERROR, IOBatch, iob_send, iob_write
from tests.support.batches import MAX_BYTES, check_invariants, data, take
from tests.support.sockets import fd_count

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.batches import MakeFile
    from tests.support.fakes import Scripted


def test_extend_moves_entries_with_their_hooks_and_owned_files(
    tmp_path: Path, make_file: MakeFile
) -> None:
    """The other batch ends empty, and its reset() and finalizer release nothing."""
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


def test_extend_leaves_bytessent_of_both_batches_as_it_is() -> None:
    """The emptied batch can be used again."""
    one, other = IOBatch(), IOBatch()
    one.addbuf(b"12345")
    take(one)
    other.addbuf(b"123")
    take(other, 2)
    one.extend(other)
    assert (one.bytessent, other.bytessent) == (5, 2)
    one.extend(other)  # empty
    other.addbuf(b"new")
    assert (take(one), take(other)) == (b"3", b"new")


def test_extend_moves_the_entries_of_a_failed_batch_without_its_error() -> None:
    failed, batch = IOBatch(), IOBatch()
    failed.addbuf(b"still here")
    assert iob_write(None, failed, lambda _sock, _view: -3) == IOB_ERROR
    batch.extend(failed)
    assert batch.error is None
    assert failed.error is not None
    assert take(batch) == b"still here"
    assert iob_write(None, failed, lambda _sock, view: len(view)) == IOB_ERROR


def test_extend_refuses_itself_other_types_and_overlong_sums() -> None:
    """Both batches stay as they are."""
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


def test_extend_and_prepend_fill_a_batch_up_to_its_maximum() -> None:
    """A batch has at most 2**63 - 1 bytes."""
    batch, other = IOBatch(), IOBatch()
    batch.addbuf(b"1")
    other.addfile(0, 0, MAX_BYTES - 2)
    batch.prepend(b"0")
    batch.extend(other)
    assert batch.bytesleft == MAX_BYTES
    with pytest.raises(OverflowError):
        batch.prepend(b"1")
    other.extend(batch)
    assert take(other, 1) == b"0"
    other.prepend(b"0")
    assert other.bytesleft == MAX_BYTES
    check_invariants(other)
    with IOBatch() as last:
        last.addfile(0, 1, MAX_BYTES - 1, on_release=lambda: None)
        assert last.bytesleft == MAX_BYTES - 1


def test_prepend_adds_before_the_unsent_rest_of_an_entry() -> None:
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


def test_prepend_adds_before_the_unsent_rest_of_a_file_range(make_file: MakeFile) -> None:
    """Some of the rest may be in memory already."""
    content = data(300_000)
    batch = IOBatch()
    batch.addfile(make_file(content))
    assert take(batch, 1000) == content[:1000]
    batch.prepend(b"between")
    assert take(batch) == b"between" + content[1000:]


def test_prepend_first_runs_the_hooks_that_an_exception_held_up(sock: Scripted) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    seen: list[str] = []
    batch = IOBatch()
    batch.addbuf(b"one", on_release=interrupt)
    batch.addbuf(b"two", on_release=lambda: seen.append("two"))
    with pytest.raises(KeyboardInterrupt):
        iob_send(sock, batch)
    assert (sock.taken, seen) == (b"onetwo", [])
    batch.prepend(b"three")
    assert seen == ["two"]
    check_invariants(batch)


def test_prepend_is_refused_while_an_offer_is_pinned() -> None:
    """Nothing changes, and the hook never runs. The next call that accepts a byte ends the pin."""
    batch = IOBatch()
    batch.addbuf(b"pinned")
    assert iob_write(None, batch, lambda _sock, _view: None) == IOB_AGAIN
    seen: list[int] = []
    for buffer in (b"before", b""):
        with pytest.raises(RuntimeError):
            batch.prepend(buffer, on_release=lambda: seen.append(1))
    assert (batch.bytesleft, seen) == (6, [])
    assert iob_write(None, batch, lambda _sock, _view: 1) == 1
    batch.prepend(b"before ")
    assert take(batch) == b"before inned"
