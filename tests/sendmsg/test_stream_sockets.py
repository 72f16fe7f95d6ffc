"""Stream sockets: partial writes, and ancillary data that goes with the first byte."""

from __future__ import annotations

import array
import os
import socket
from typing import TYPE_CHECKING

from iobatch import IOB_DONE, IOB_ERROR, IOBatch, iob_send, iob_sendmsg
from tests.support.batches import IOV_MAX, check_invariants, data
from tests.support.fakes import Scripted
from tests.support.sockets import receive, stream_pair

if TYPE_CHECKING:
    from tests.support.batches import MakeFile


def test_rest_of_a_partial_write_can_be_sent_by_iob_send(make_file: MakeFile) -> None:
    content = data(100_000)
    batch = IOBatch()
    batch.addbuf(b"header")
    batch.addfile(make_file(content))
    with Scripted(10) as sock:
        assert iob_sendmsg(sock, batch) == 10
        assert batch.bytesleft == 99_996
        while iob_send(sock, batch) > 0:
            check_invariants(batch)
        assert sock.taken == b"header" + content


def test_repeated_calls_send_a_large_batch(make_file: MakeFile) -> None:
    content = data(500_000)
    batch = IOBatch()
    for i in range(2 * IOV_MAX):
        batch.addbuf(content[i : i + 1])
    batch.addfile(make_file(content), 2 * IOV_MAX)
    received = b""
    with stream_pair() as (one, other):
        one.setblocking(False)
        for _ in range(100_000):
            nbytes = iob_sendmsg(one, batch)
            assert nbytes != IOB_ERROR
            if nbytes == IOB_DONE:
                break
            received += receive(other, max(nbytes, 0))
    assert received == content


def test_ancillary_data_goes_with_the_first_byte(make_file: MakeFile) -> None:
    fd = make_file(b"x")
    content = data(3_000_000)
    with stream_pair() as (one, other):
        one.setblocking(False)
        batch = IOBatch()
        batch.addbuf(content)
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))
        first = iob_sendmsg(one, batch, iter([rights]))
        assert 0 < first < len(content)
        piece, fds, _flags, _address = socket.recv_fds(other, 1, 5)
        assert len(fds) == 1
        os.close(fds[0])
        received = piece + receive(other, first - 1)
        while iob_send(one, batch) != IOB_DONE:
            received += receive(other, batch.bytessent - len(received))
    assert received == content
