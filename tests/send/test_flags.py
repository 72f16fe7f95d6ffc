"""Flags of each send: the caller's, MSG_NOSIGNAL and MSG_MORE."""

from __future__ import annotations

import errno
import select
import socket
from time import monotonic
from typing import TYPE_CHECKING

import pytest

from iobatch import IOBatch, iob_send, iob_sendmsg
from tests.support.batches import IOV_MAX, batch_of, check_invariants, data
from tests.support.fakes import Scripted, patch_os
from tests.support.send import (
    LARGE,
    MORE,
    NOSIGNAL,
    failing_sendfile,
    is_held_back,
    send_repeatedly,
    unsent,
)
from tests.support.sockets import PATIENCE, is_silent, receive, stream_pair

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


@pytest.mark.parametrize("flags", [2**31 - 1, 1 - 2**31])
def test_flags_may_be_any_c_int(send: Send, flags: int) -> None:
    with Scripted() as sock:
        assert send(sock, batch_of(b"hello"), flags=flags) == 5
        assert [call.flags for call in sock.calls] == [flags | NOSIGNAL]


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
    start = monotonic()
    assert send_repeatedly(one, batch, flags=socket.MSG_MORE) == [9, 0]
    assert is_held_back(one, 9, start)
    batch.addbuf(b", let go")
    assert send_repeatedly(one, batch) == [8, 0]
    assert unsent(one) == 0
    assert receive(other, 17) == b"held back, let go"


@pytest.mark.parametrize(
    "kind", [socket.SOCK_DGRAM, socket.SOCK_SEQPACKET, socket.SOCK_RAW], ids=repr
)
@pytest.mark.parametrize("send", [iob_send, iob_sendmsg])
@pytest.mark.parametrize("more", [socket.MSG_MORE, MORE, socket.MSG_MORE | socket.MSG_DONTWAIT])
def test_msg_more_is_refused_by_message_sockets_that_ignore_it(
    send: Send, kind: socket.SocketKind, more: int
) -> None:
    """Two messages would go out. The batch may be empty or not."""
    one, other = socket.socketpair(socket.AF_UNIX, kind)
    batch = IOBatch()
    with one, other:
        for _ in range(2):
            with pytest.raises(OSError) as caught:
                send(one, batch, flags=more)
            assert caught.value.errno == errno.EOPNOTSUPP
            assert is_silent(other)
            assert batch.error is None
            batch.addbuf(b"hello")
            check_invariants(batch)
        assert send(one, batch, flags=socket.MSG_DONTWAIT) == 10
        assert other.recv(100) == b"hellohello"


@pytest.mark.parametrize("send", [iob_send, iob_sendmsg])
def test_msg_more_joins_two_batches_to_one_udp_datagram(send: Send) -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other,
    ):
        other.bind(("127.0.0.1", 0))
        one.connect(other.getsockname())
        assert send(one, batch_of(b"one "), flags=socket.MSG_MORE) == 4
        assert is_silent(other)
        assert send(one, batch_of(b"message")) == 7
        assert other.recv(100) == b"one message"


@pytest.mark.parametrize("send", [iob_send, iob_sendmsg])
def test_msg_more_is_accepted_on_a_unix_stream(send: Send) -> None:
    """A stream has no message boundaries that the flag could change."""
    with stream_pair() as (one, other):
        assert send(one, batch_of(b"hello"), flags=socket.MSG_MORE) == 5
        assert receive(other, 5) == b"hello"


@pytest.mark.parametrize("send", [iob_send, iob_sendmsg])
def test_msg_more_is_accepted_for_af_alg(send: Send) -> None:
    """The kernel's documentation: MSG_MORE continues a hash (crypto/userspace-if)."""

    class Operation(Scripted):
        """A stand-in: few kernels have these sockets."""

        family = socket.AF_ALG  # type: ignore[assignment]
        type = socket.SOCK_SEQPACKET  # type: ignore[assignment]

    with Operation() as sock:
        assert send(sock, batch_of(b"hello"), flags=socket.MSG_MORE) == 5


def test_type_of_the_socket_is_not_asked_for_without_msg_more(tcp: Pair) -> None:
    """It costs as much as a quarter of a small send."""

    def fail(_self: object) -> None:
        raise AssertionError("the type was asked for")

    class Costly(socket.socket):
        type = family = property(fail)  # type: ignore[assignment]

    with Costly(fileno=tcp[0].detach()) as sock:
        assert iob_send(sock, batch_of(b"hello")) == 5
        assert iob_send(sock, batch_of(b"hello"), flags=socket.MSG_DONTWAIT) == 5
