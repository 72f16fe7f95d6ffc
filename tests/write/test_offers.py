"""Offers: their size, neighbours joined in one, and files read in pieces."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import pytest

from iobatch import IOB_DONE, IOB_ERROR, WRITE_LIMIT, IOBatch, TruncatedFileError, iob_write
from tests.support.batches import STAGE_LIMIT, batch_of, check_invariants, data
from tests.support.fakes import Read, log_preads
from tests.support.write import LARGE, Sink, write_repeatedly

if TYPE_CHECKING:
    from tests.support.batches import MakeFile


@pytest.mark.parametrize(
    ("limit", "error"), [(0, ValueError), (-1, ValueError), ("1", TypeError), (1.5, TypeError)]
)
def test_bad_limit_raises_and_offers_nothing(limit: Any, error: type[Exception]) -> None:
    batch, sink = batch_of(b"hello"), Sink()
    with pytest.raises(error):
        iob_write(None, batch, sink, limit=limit)
    assert sink.offers == []
    check_invariants(batch)


def test_default_limit_is_write_limit_and_none_is_no_cap(make_file: MakeFile) -> None:
    content = data(LARGE)
    fd = make_file(content)
    for add in (
        lambda b: b.addbuf(content),
        lambda b: b.addfile(fd),
        lambda b: [b.addbuf(content[i : i + 1000]) for i in range(0, LARGE, 1000)],
        lambda b: [b.addfile(fd, i, 1000) for i in range(0, LARGE, 1000)],
    ):
        batch, sink = IOBatch(), Sink()
        add(batch)
        results = write_repeatedly(batch, sink)
        assert max(results) <= WRITE_LIMIT
        assert results[0] == WRITE_LIMIT
        assert sum(results) == LARGE
        add(batch)
        assert write_repeatedly(batch, sink, limit=None) == [LARGE, 0]
        assert sink.taken == content + content


@pytest.mark.parametrize("limit", [1, 2, 3, 1000, 40_000])
def test_no_call_takes_more_than_its_limit(make_file: MakeFile, limit: int) -> None:
    content = data(3_000 if limit < 10 else LARGE)
    batch, sink = IOBatch(), Sink()
    batch.addbuf(b"header")
    batch.addfile(make_file(content))
    batch.addbuf(bytearray(b"trailer"))
    while (nbytes := iob_write(None, batch, sink, limit=limit)) > 0:
        assert nbytes <= limit
        check_invariants(batch)
    assert nbytes == IOB_DONE
    assert sink.taken == b"header" + content + b"trailer"


def test_header_and_small_file_are_one_offer(make_file: MakeFile) -> None:
    """With TLS one small offer is one record."""
    content = data(1000)
    batch, sink = IOBatch(), Sink()
    batch.addbuf(b"header")
    batch.addfile(make_file(content))
    assert write_repeatedly(batch, sink) == [1006, 0]
    assert sink.offers == [b"header" + content]


def test_1_000_small_buffers_take_at_most_10_offers() -> None:
    batch, sink = IOBatch(), Sink()
    for i in range(1000):
        batch.addbuf(data(20, seed=i))
    write_repeatedly(batch, sink)
    assert len(sink.offers) <= 10
    assert sink.taken == b"".join(data(20, seed=i) for i in range(1000))


@pytest.mark.parametrize(("size", "offers"), [(16_384, [32_768]), (16_385, [16_385, 16_385])])
def test_neighbours_are_joined_up_to_32_kib(size: int, offers: list[int]) -> None:
    batch, sink = batch_of(data(size), data(size)), Sink()
    write_repeatedly(batch, sink)
    assert list(map(len, sink.offers)) == offers


def test_hook_runs_at_the_last_byte_of_its_own_entry() -> None:
    seen: list[tuple[str, int]] = []
    batch, sink = IOBatch(), Sink(1, 1, 1, 1, 1, 1, 1, 1)
    for name in ("aa", "bb", "cc"):
        batch.addbuf(
            name.encode(), on_release=lambda name=name: seen.append((name, batch.bytessent))
        )
        batch.addbuf(b"-")
    write_repeatedly(batch, sink)
    assert seen == [("aa", 2), ("bb", 5), ("cc", 8)]


@pytest.mark.parametrize("kind", ["plain", "hooks", "mixed"])
def test_work_is_linear_in_the_number_of_buffers(kind: str) -> None:
    """Five times as many buffers cause fewer than seven times as many profile events."""
    counts = []
    for number in (4_000, 20_000):
        batch, sink = IOBatch(), Sink()
        for i in range(number):
            piece = bytearray(b"x") if kind == "mixed" and i % 2 else b"x"
            batch.addbuf(piece, on_release=int if kind == "hooks" else None)
        events = 0

        def count(_frame: object, _event: str, _arg: object) -> None:
            nonlocal events
            events += 1

        sys.setprofile(count)
        try:
            while batch:
                iob_write(None, batch, sink)
        finally:
            sys.setprofile(None)
        counts.append(events)
    assert counts[1] < 7 * counts[0]
    assert counts[1] < 100 * 20_000, "too many events for each buffer"


class Slow(Sink):
    """A Sink that takes at most what is offered, if the number in its script is larger."""

    def __call__(self, sock: object, view: memoryview) -> Any:
        if self.script:
            self.script[0] = min(self.script[0], len(view))
        return super().__call__(sock, view)


@pytest.mark.parametrize("script", ["all", "short", "again"])
def test_file_is_read_once_and_at_most_128_kib_ahead(
    make_file: MakeFile, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    content = data(LARGE)
    fd = make_file(content)
    reads: list[Read] = log_preads(monkeypatch)
    actions = {"all": [], "short": [1, 1000] * 200, "again": [-1, 5000, -1] * 100}[script]
    batch, sink = IOBatch(), Slow(*actions)
    batch.addfile(fd)
    while batch:
        iob_write(None, batch, sink, limit=None)
        check_invariants(batch)
        assert sum(read.size for read in reads) - batch.bytessent <= STAGE_LIMIT
    assert sink.taken == content
    assert sum(read.size for read in reads) == LARGE
    assert max(read.size for read in reads) <= STAGE_LIMIT


def test_small_files_are_read_once_and_at_most_128_kib_ahead(
    make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = data(20_000)
    fd = make_file(content)
    reads: list[Read] = log_preads(monkeypatch)
    batch, sink = IOBatch(), Slow(*[3000, -1] * 150)
    for _ in range(50):
        batch.addfile(fd)
    while batch:
        iob_write(None, batch, sink)
        assert sum(read.size for read in reads) - batch.bytessent <= STAGE_LIMIT
    assert sink.taken == content * 50
    assert sum(read.size for read in reads) == 50 * 20_000


def test_truncated_file_is_an_error_after_its_bytes(make_file: MakeFile) -> None:
    content = data(LARGE)
    fd = make_file(content)
    batch, sink = IOBatch(), Sink()
    batch.addbuf(b"header")
    batch.addfile(fd)
    os.ftruncate(fd, LARGE - 1000)
    assert write_repeatedly(batch, sink)[-1] == IOB_ERROR
    assert sink.taken == b"header" + content[:-1000]
    error = batch.error
    assert isinstance(error, TruncatedFileError)
    assert (error.fd, error.offset, error.missing) == (fd, LARGE - 1000, 1000)
