"""Flags of each send: the caller's, MSG_NOSIGNAL and MSG_MORE."""

from __future__ import annotations

import errno
import select
import socket
from typing import TYPE_CHECKING

import pytest

from iobatch import IOBatch, iob_send
from tests.support.batches import IOV_MAX, data
from tests.support.fakes import Scripted, patch_os
from tests.support.send import LARGE, MORE, NOSIGNAL, failing_sendfile, send_repeatedly, unsent
from tests.support.sockets import PATIENCE, receive

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.batches import MakeFile

    Send = Callable[..., int]
    Pair = tuple[socket.socket, socket.socket]


def test_every_send_has_msg_nosignal_and_all_but_the_last_msg_more(
    send: Send, make_file: MakeFile
) -> None:
    batch = IOBatch()
    fd = make_file(data(3 * IOV_MAX))
    for i in range(2 * IOV_MAX):
        batch.addbuf(bytearray(b"x"))
        if i % 100 == 0:
            batch.addfile(fd, i, 10)
    with Scripted() as sock:
        while send(sock, batch) > 0:
            pass
        assert all(call.flags & NOSIGNAL for call in sock.calls)
        assert all(call.flags & MORE for call in sock.calls[:-1])
        assert not sock.calls[-1].flags & MORE


@pytest.mark.parametrize(
    "flags",
    [int(socket.MSG_DONTROUTE), socket.MSG_OOB, socket.MSG_MORE],
    ids=["MSG_DONTROUTE", "MSG_OOB", "MSG_MORE"],
)
def test_callers_flags_reach_every_send(
    make_file: MakeFile, monkeypatch: pytest.MonkeyPatch, flags: int
) -> None:
    """With flags a large range is read, as sendfile takes none."""
    content = data(LARGE)
    batch = IOBatch()
    batch.addbuf(b"header")
    batch.addfile(make_file(content))
    batch.addbuf(bytearray(b"trailer"))
    patch_os(monkeypatch, "sendfile", failing_sendfile(errno.EIO))
    with Scripted(4, 1000) as sock:
        while iob_send(sock, batch, flags=flags) > 0:
            pass
        assert sock.taken == b"header" + content + b"trailer"
        assert all(call.flags & flags and call.flags & NOSIGNAL for call in sock.calls)
        assert {call.name for call in sock.calls} <= {"send", "sendmsg"}


def test_msg_oob_sends_a_byte_out_of_band(tcp: Pair) -> None:
    one, other = tcp
    batch = IOBatch()
    batch.addbuf(b"!")
    assert iob_send(one, batch, flags=socket.MSG_OOB) == 1
    assert select.select([], [], [other], PATIENCE)[2]
    assert other.recv(1, socket.MSG_OOB) == b"!"


def test_callers_msg_more_holds_back_the_last_frame(tcp: Pair) -> None:
    one, other = tcp
    batch = IOBatch()
    batch.addbuf(b"held back")
    assert send_repeatedly(one, batch, flags=socket.MSG_MORE) == [9, 0]
    assert unsent(one) == 9
    batch.addbuf(b", let go")
    assert send_repeatedly(one, batch) == [8, 0]
    assert unsent(one) == 0
    assert receive(other, 17) == b"held back, let go"
