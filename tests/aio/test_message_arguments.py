"""The arguments of sendmsg for one message: ancillary data and an address."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

from iobatch.aio import BatchWriter
from tests.support.batches import batch_of, data
from tests.support.loops import both_loops, writer_pair

if TYPE_CHECKING:
    from collections.abc import Callable


@both_loops
async def test_messages_have_ancillary_data_and_an_address(
    make_file: Callable[[bytes], int],
) -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ours,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as theirs,
    ):
        ours.setblocking(False)
        theirs.bind(("127.0.0.1", 0))
        writer = BatchWriter(ours)
        assert await writer.write(batch_of(b"datagram"), address=theirs.getsockname()) == 8
        assert theirs.recv(99) == b"datagram"
        batch = batch_of(b"x")
        operation = writer.write(batch, address=7)
        with pytest.raises(TypeError):
            await operation
        assert await writer.write(operation.batch, address=theirs.getsockname()) == 1
    with writer_pair() as (writer, _):
        for options in ({"address": ("127.0.0.1", 9)}, {"ancdata": [(1, 1, b"")]}):
            with pytest.raises(ValueError, match="are for messages"):
                writer.write(batch_of(b"x"), **options)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        ours.setblocking(False)
        writer = BatchWriter(ours)
        fd = make_file(data(10))
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, fd.to_bytes(4, "little"))
        assert await writer.write(batch_of(b"a file"), ancdata=iter([rights])) == 6
        message, [passed], _, _ = socket.recv_fds(theirs, 99, 1)
        assert os.pread(passed, 99, 0) == data(10)
        os.close(passed)
        assert message == b"a file"
        batch = batch_of(b"x")
        for bad in ([(1, 1)], [(1, "1", b"")], [(1, 1, 5)], 7):
            with pytest.raises(TypeError):
                writer.write(batch, ancdata=bad)  # type: ignore[arg-type]
        assert batch.bytesleft == 1
