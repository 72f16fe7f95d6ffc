"""Hooks: when on_release runs, and what it can do."""

from __future__ import annotations

import gc
import sys
import weakref
from functools import partial
from io import FileIO
from typing import TYPE_CHECKING

import pytest

import iobatch
from iobatch import IOBatch, iob_send, iob_write
from tests.support.batches import check_invariants, take
from tests.support.fakes import Scripted

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.batches import MakeFile


def test_hook_runs_once_as_soon_as_its_last_byte_is_accepted() -> None:
    """Hooks run in the order of their entries."""
    batch = IOBatch()
    seen: list[str] = []
    for name in ("one", "two", "three"):
        batch.addbuf(name.encode(), on_release=lambda name=name: seen.append(name))
        batch.addbuf(b"-")
    seen_after: dict[int, list[str]] = {}  # by the number of bytes sent
    while batch:
        take(batch, 1)
        seen_after[batch.bytessent] = list(seen)
    assert seen_after[2] == []
    assert seen_after[3] == seen_after[4] == seen_after[6] == ["one"]
    assert seen_after[7] == seen_after[12] == ["one", "two"]
    assert seen_after[13] == seen_after[14] == ["one", "two", "three"]
    batch.reset()
    del batch
    gc.collect()
    assert seen == ["one", "two", "three"]


def test_hooks_of_entries_accepted_by_one_call_run_in_order() -> None:
    batch = IOBatch()
    seen: list[int] = []
    for i in range(100):
        batch.addbuf(b"x", on_release=lambda i=i: seen.append(i))
    with Scripted() as sock:
        assert iob_send(sock, batch) == 100
    assert seen == list(range(100))


def test_reset_runs_the_hooks_of_unsent_entries_in_order() -> None:
    """All views are released before the first hook runs, and each hook runs once."""
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


@pytest.mark.parametrize("call", [iob_send, lambda _sock, batch: batch.reset()])
def test_next_call_runs_the_hooks_that_an_exception_held_up_in_a_reset(
    sock: Scripted, call: Callable[[Scripted, IOBatch], object]
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    seen: list[str] = []
    batch = IOBatch()
    batch.addbuf(b"one", on_release=interrupt)
    batch.addbuf(b"two", on_release=lambda: seen.append("two"))
    with pytest.raises(KeyboardInterrupt):
        batch.reset()
    assert seen == []
    call(sock, batch)
    assert seen == ["two"]
    check_invariants(batch)


def test_next_call_runs_the_hook_of_an_empty_file_whose_close_raises(
    sock: Scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(FileIO):
        def close(self) -> None:
            if not self.closed:
                super().close()
                raise KeyboardInterrupt

    (tmp_path / "file").touch()
    monkeypatch.setattr("iobatch._batch.open_file", Interrupted)
    seen: list[int] = []
    batch = IOBatch()
    with pytest.raises(KeyboardInterrupt):
        batch.addfile(tmp_path / "file", on_release=lambda: seen.append(1))
    assert seen == []
    assert iob_send(sock, batch) == 0
    assert seen == [1]


def test_hook_of_a_descriptors_range_runs_after_its_last_byte(make_file: MakeFile) -> None:
    seen: list[int] = []
    batch = IOBatch()
    batch.addfile(make_file(b"hello"), 0, 5, on_release=lambda: seen.append(batch.bytessent))
    assert take(batch) == b"hello"
    assert seen == [5]


def test_reset_keeps_what_a_hook_adds_that_an_exception_held_up(sock: Scripted) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    batch = IOBatch()
    batch.addbuf(b"one", on_release=interrupt)
    batch.addbuf(b"two", on_release=lambda: batch.addbuf(b"three"))
    with pytest.raises(KeyboardInterrupt):
        iob_send(sock, batch)
    batch.reset()
    assert take(batch) == b"three"


def test_on_release_that_is_not_callable_is_refused(make_file: MakeFile) -> None:
    """The TypeError is raised before anything changes."""
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


def test_hook_that_raises_is_unraisable_and_sending_goes_on(
    unraisable: list[BaseException | None],
) -> None:
    """The hooks of other entries run."""
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


def test_default_unraisablehook_prints_the_traceback_of_a_hook(
    capsys: pytest.CaptureFixture[str],
) -> None:
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


def test_hook_sees_the_counts_after_its_last_byte() -> None:
    batch = IOBatch()
    seen: list[tuple[int, int]] = []
    batch.addbuf(b"12345", on_release=lambda: seen.append((batch.bytesleft, batch.bytessent)))
    batch.addbuf(b"678")
    take(batch, 5)
    assert seen == [(3, 5)]


def test_hook_can_add_entries_during_a_send_and_reset(tmp_path: Path) -> None:
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
    # One call may accept both entries before the hook runs.
    assert sock.taken in (b"one between two added other 0123", b"one two between added other 0123")
    batch.addbuf(b"x", on_release=lambda: batch.addbuf(b"after reset"))
    batch.reset()
    assert take(batch) == b"after reset"


def test_limit_ends_a_call_whose_hook_adds_an_entry_each_time() -> None:
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
def test_hook_cannot_send_reset_or_move_its_own_batch(when: str) -> None:
    """Each attempt raises RuntimeError and has no effect."""
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


def test_hook_can_send_another_batch() -> None:
    batch, other = IOBatch(), IOBatch()
    other.addbuf(b"other")
    with Scripted() as sock:
        batch.addbuf(b"one", on_release=lambda: iob_send(sock, other))
        assert iob_send(sock, batch) == 3
        assert sock.taken == b"oneother"


def test_hook_ends_before_the_next_hook_begins() -> None:
    """Each hook prepends an entry, and adds an empty entry that has a hook, too."""
    order: list[str] = []
    batch = IOBatch()

    def hook(number: int) -> None:
        order.append(f"{number}(")
        batch.prepend(b"%d" % number)
        batch.addbuf(b"", on_release=lambda: order.append(f"empty {number}"))
        order.append(f"){number}")

    for number in range(300):
        batch.addbuf(b"x", on_release=partial(hook, number))
    with Scripted() as sock:
        assert iob_send(sock, batch) == 300
    assert [name for name in order if "(" in name] == [f"{number}(" for number in range(300)]
    for number in range(300):
        assert order[order.index(f"{number}(") + 1] == f"){number}"
    assert batch.bytesleft == sum(len(str(number)) for number in range(300))
    batch.reset()


def test_exception_of_a_hook_does_not_keep_the_batch_or_its_buffers_alive(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
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
        reference = weakref.ref(batch)
        del batch
        assert reference() is None
    finally:
        gc.enable()
