"""MSG_* flags of posted writes."""

from __future__ import annotations

import errno
import select
import socket

import pytest

from iobatch.aio import BatchWriter
from tests.support.batches import batch_of
from tests.support.fakes import again
from tests.support.loops import (
    both_loops,
    read,
    scripted_writer,
    writer_pair,
)
from tests.support.sockets import PATIENCE


@both_loops
async def test_msg_oob_goes_with_its_own_operation_only() -> None:
    with writer_pair("tcp4") as (writer, peer):
        assert await writer.write(batch_of(b"!"), flags=socket.MSG_OOB) == 1
        assert await writer.write(batch_of(b"in band")) == 7
        assert select.select([], [], [peer], PATIENCE)[2]
        assert peer.recv(1, socket.MSG_OOB) == b"!"
        assert await read(peer, 7) == b"in band"


@both_loops
async def test_flags_go_with_each_send_of_their_operation() -> None:
    """MSG_DONTROUTE, and MSG_MORE, which is WSASend's MSG_PARTIAL."""
    flags = socket.MSG_DONTROUTE | socket.MSG_MORE
    with scripted_writer(again(), 2, again()) as (writer, sock):
        operation = writer.write(batch_of(b"abcd"), flags=flags)
        some = writer.write_some(batch_of(b"ef"), flags=socket.MSG_DONTROUTE)
        plain = writer.write(batch_of(b"gh"))
        await plain
        assert operation.done()
        assert some.done()
        seen = [call.flags & flags for call in sock.calls]
        assert seen == [flags] * 4 + [socket.MSG_DONTROUTE, 0]


@both_loops
async def test_every_send_has_msg_nosignal() -> None:
    """The joined first send, the sends of its rest, and a gather write."""
    with scripted_writer(1, again()) as (writer, sock):
        writer.write(batch_of(b"small"))
        await writer.write(batch_of(bytes(50_000), bytes(50_000)))
        assert len(sock.calls) == 4
        assert all(call.flags & socket.MSG_NOSIGNAL for call in sock.calls)


@both_loops
async def test_msg_more_is_refused_by_message_sockets_that_ignore_it() -> None:
    """The batch keeps its bytes, and the writer goes on."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        writer = BatchWriter(ours)
        batch = batch_of(b"one")
        for write in (writer.write, writer.write_some):
            with pytest.raises(OSError) as caught:
                write(batch, flags=socket.MSG_MORE)
            assert caught.value.errno == errno.EOPNOTSUPP
            assert batch.bytesleft == 3
        assert await writer.write(batch) == 3
        assert theirs.recv(100) == b"one"
        writer.close()
