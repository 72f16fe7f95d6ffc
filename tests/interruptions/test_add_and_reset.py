"""Handlers that raise while entries are added, or the batch is reset."""

from __future__ import annotations

import os
from contextlib import suppress
from itertools import count
from traceback import walk_tb
from typing import TYPE_CHECKING

import pytest

from iobatch import IOBatch
from iobatch._batch import core_of
from tests.support.batches import check_invariants, data
from tests.support.interruptions import KINDS, SMALL, ReleaseLog, every_kind, handler_that_raises

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.batches import MakeFile


def interrupted_function(exc: Exception) -> str:
    """Return the name of the function in which a handler raised an exception."""
    assert exc.__traceback__ is not None
    frames = [frame for frame, _ in walk_tb(exc.__traceback__)]
    return frames[-3].f_code.co_name  # the last two are the handler's own


def additions(
    batch: IOBatch, other: IOBatch, released: ReleaseLog, owned: list[int], path: Path
) -> dict[str, Callable[[], None]]:
    """Return functions that add entries, by a name that is also the name of their hook."""
    return {
        # First, so that its descriptor does not have the number of a closed one.
        "path": lambda: batch.addfile(path, on_release=released.hook("path")),
        "one": lambda: batch.addbuf(b"1", on_release=released.hook("one")),
        "close": lambda: batch.addfile_close(owned[0], 0, 10),
        "view": lambda: other.addbuf(bytearray(b"2"), on_release=released.hook("view")),
        "close in other": lambda: other.addfile_close(owned[1]),
        "buffers": lambda: other.addbufs([b"4", bytearray(b"5"), b"", memoryview(b"6")]),
        "extend": lambda: batch.extend(other),
        "prepend": lambda: batch.prepend(b"3", on_release=released.hook("prepend")),
        "empty": lambda: batch.addbuf(b"", on_release=released.hook("empty")),
        "close empty": lambda: batch.addfile_close(owned[2], 0, 0),
    }


# A handler may run before the batch owns the file of a path. Its finalizer closes it then.
@pytest.mark.filterwarnings("ignore:unclosed file <_io.FileIO:ResourceWarning")
@every_kind
def test_interrupted_add_adds_a_whole_entry_or_none(
    kind: type[Exception], make_file: MakeFile, tmp_path: Path
) -> None:
    """An owned file is closed once in either case."""
    content = data(SMALL)
    fd = make_file(content)
    path = tmp_path / "path"
    path.write_bytes(content)
    for point in count(1):
        with pytest.MonkeyPatch.context() as patch:
            released = ReleaseLog(patch)
            owned = [os.dup(fd) for _ in range(3)]
            batch, other = IOBatch(), IOBatch()
            interrupted: dict[str, Exception] = {}
            with handler_that_raises(point, kind) as raised:
                for name, add in additions(batch, other, released, owned, path).items():
                    try:
                        add()
                    except KINDS as exc:
                        interrupted[name] = exc
            assert all(exc is raised[0] for exc in interrupted.values())
            queued = [*core_of(batch).snapshot(), *core_of(other).snapshot()]
            open_fds = {entry[0] for entry in queued if isinstance(entry, tuple)}
            assert open_fds.isdisjoint(released.entries), "the file of a queued range is closed"
            batch.reset()
            other.reset()
            check_invariants(batch)
            check_invariants(other)
            closed = [entry for entry in released.entries if isinstance(entry, int)]
            hooks = [entry for entry in released.entries if isinstance(entry, str)]
            assert len(set(closed)) == len(closed)
            for fd_left_open in set(owned) - set(closed):
                # The handler ran before addfile_close() had taken the file over.
                assert interrupted_function(raised[0]) in {
                    "addfile_close",
                    "is_path",
                    "_add_owned",
                }
                os.close(fd_left_open)
            assert len(set(hooks)) == len(hooks)
            assert {"path", "one", "view", "prepend", "empty"} - set(hooks) <= interrupted.keys()
        if not raised:
            break
    assert point > 50


@every_kind
def test_second_reset_releases_the_rest_of_an_interrupted_reset(
    kind: type[Exception], make_file: MakeFile
) -> None:
    fd = make_file(data(SMALL))
    for point in count(1):
        with pytest.MonkeyPatch.context() as patch:
            released = ReleaseLog(patch)
            owned = os.dup(fd)
            batch = IOBatch()
            batch.addbuf(b"one", on_release=released.hook("one"))
            batch.addfile_close(owned)
            batch.addbuf(bytearray(b"two"), on_release=released.hook("two"))
            with handler_that_raises(point, kind) as raised, suppress(kind):
                batch.reset()
            assert repr(batch)
            batch.reset()
            check_invariants(batch)
            assert released.entries == ["one", owned, "two"]
        if not raised:
            break
    assert point > 5
