"""A batch against plain bytes: calls that are cut at every byte."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

import pytest

from iobatch import IOB_DONE, IOBatch, iob_send, iob_sendmsg, iob_write
from tests.support.batches import check_invariants, data
from tests.support.fakes import Scripted, again, patch_os, script_sendfile
from tests.support.forms import copy_limit, pure
from tests.support.sockets import fd_count

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.batches import MakeFile
    from tests.support.drivers import Step

# Replaces COPY_LIMIT: a longer range goes by sendfile, so a short batch meets every path.
SHORT_COPY_LIMIT = 16


def by_iob_write(sock: Scripted, batch: IOBatch) -> int:
    return iob_write(sock, batch, Scripted.send)


SENDERS: dict[str, Step] = {
    "iob_send": iob_send,
    "iob_send, its pure form": pure(iob_send),
    "iob_send without sendfile": pure(iob_send),
    "iob_send without sendmsg": pure(iob_send),
    "iob_send, sendfile refused": iob_send,
    "iob_sendmsg": iob_sendmsg,
    "iob_write": by_iob_write,
}


@pytest.fixture(params=SENDERS)
def sender(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, Step]]:
    if "without" in request.param:
        attribute, value = {
            "iob_send without sendfile": ("_sendfile", None),
            "iob_send without sendmsg": ("_HAS_SENDMSG", False),
        }[request.param]
        monkeypatch.setattr(f"iobatch._send.{attribute}", value)
    with copy_limit(SHORT_COPY_LIMIT):
        yield request.param, SENDERS[request.param]


def make_batch(fd: int, content: bytes, released: list[int]) -> tuple[IOBatch, bytes, list[int]]:
    """Return a batch with every kind of entry, its content, and the end of each entry with a hook.

    Each hook appends the batch's bytessent to `released`.
    """
    batch = IOBatch()
    wanted = bytearray()
    ends = []

    def hook() -> None:
        released.append(batch.bytessent)

    def add_file(offset: int, count: int, **options: Any) -> None:
        batch.addfile(fd, offset, count, **options)
        wanted.extend(content[offset : offset + count])

    def add(piece: bytes | bytearray, **options: Any) -> None:
        batch.addbuf(piece, **options)
        wanted.extend(piece)

    add(b"first")
    add(b"second", on_release=hook)
    ends.append(len(wanted))
    add_file(3, SHORT_COPY_LIMIT)
    add(bytearray(b"third"), on_release=hook)
    ends.append(len(wanted))
    add_file(20, 3 * SHORT_COPY_LIMIT, on_release=hook)
    ends.append(len(wanted))
    add_file(90, 2)
    batch.addfile_close(os.dup(fd), 0, 5)
    wanted.extend(content[:5])
    add(b"x", on_release=hook)
    ends.append(len(wanted))
    add_file(30, SHORT_COPY_LIMIT + 1, on_release=hook)
    ends.append(len(wanted))
    add(b"last", on_release=hook)
    ends.append(len(wanted))
    return batch, bytes(wanted), ends


def test_call_cut_at_any_byte_loses_and_repeats_no_byte_and_no_hook(
    sender: tuple[str, Step], make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each hook runs once, when the last byte of its entry was accepted."""
    name, step = sender
    content = data(100)
    fd = make_file(content)
    before = fd_count()
    unused, wanted, _ends = make_batch(fd, content, [])
    unused.reset()
    total = len(wanted)
    for cut in range(1, total + 1):
        for next_cuts in (1, 7, total):
            released: list[int] = []
            batch, wanted, ends = make_batch(fd, content, released)
            script = [cut, again(), again()] + [next_cuts, again()] * total
            with Scripted(*script) as sock, monkeypatch.context() as patch:
                if name in {"iob_send", "iob_send, its pure form"}:
                    script_sendfile(patch, sock)
                elif name == "iob_send, sendfile refused":
                    patch_os(patch, "sendfile", refuse_sendfile)
                for _ in range(4 * total):
                    sent = batch.bytessent
                    nbytes = step(sock, batch)
                    check_invariants(batch)
                    assert batch.bytessent - sent == max(nbytes, 0)
                    assert batch.bytessent == len(sock.taken) == total - batch.bytesleft
                    assert len(released) == sum(end <= batch.bytessent for end in ends)
                    if nbytes == IOB_DONE:
                        break
                assert sock.taken == wanted
            assert all(seen >= end for seen, end in zip(released, ends, strict=True))
            assert fd_count() == before


def refuse_sendfile(*_args: int) -> int:
    raise OSError(errno.EINVAL, "scripted")
