"""Errors of iob_sendmsg: nothing is sent, and the batch keeps everything."""

from __future__ import annotations

import errno
import os
import socket
import sys
from typing import TYPE_CHECKING, Any

import pytest

from iobatch import IOB_ERROR, IOBatch, TruncatedFileError, iob_send, iob_sendmsg
from tests.support.batches import check_invariants, data
from tests.support.fakes import Scripted, log_preads
from tests.support.sockets import is_silent, receive, refusing_udp, stream_pair, wait_for_error

if TYPE_CHECKING:
    from tests.support.batches import MakeFile


@pytest.mark.parametrize(
    "bad",
    ["name", None, 5, -1, object(), sys.stdout],
    ids=["str", "None", "int", "negative", "object", "file"],
)
def test_anything_but_a_socket_object_is_refused(bad: Any) -> None:
    """The batch may be empty or not."""
    batch = IOBatch()
    for _ in range(2):
        with pytest.raises(TypeError, match="sock must be a socket object"):
            iob_sendmsg(bad, batch)
        batch.addbuf(b"hello")
    check_invariants(batch)


def test_bad_ancillary_data_raises_and_loses_nothing() -> None:
    batch = IOBatch()
    batch.addbuf(b"hello")
    with stream_pair() as (one, other):
        with pytest.raises(TypeError):
            iob_sendmsg(one, batch, [5])  # type: ignore[list-item]
        check_invariants(batch)
        assert iob_sendmsg(one, batch) == 5
        assert receive(other, 5) == b"hello"


def test_host_name_that_cannot_be_resolved_is_a_permanent_error() -> None:
    """A name of this length is refused without a query."""
    batch = IOBatch()
    batch.addbuf(b"hello")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        assert iob_sendmsg(sock, batch, address=("x" * 300, 9)) == IOB_ERROR
    assert isinstance(batch.error, socket.gaierror)
    assert batch.bytesleft == 5


def test_failed_batch_makes_no_system_call() -> None:
    batch = IOBatch()
    batch.addbuf(b"hello")
    with Scripted(OSError(errno.EIO, "scripted")) as sock:
        assert iob_send(sock, batch) == IOB_ERROR
        assert iob_sendmsg(sock, batch) == IOB_ERROR
        assert len(sock.calls) == 1


def test_batch_of_1_tib_is_emsgsize_without_a_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """No message is this long, so the file needn't be read."""
    reads = log_preads(monkeypatch)
    batch = IOBatch()
    batch.addfile(0, 0, 2**40)
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with one, other:
        assert iob_sendmsg(one, batch) == IOB_ERROR
    assert isinstance(batch.error, OSError)
    assert batch.error.errno == errno.EMSGSIZE
    assert (batch.bytesleft, reads) == (2**40, [])


def test_sparse_file_of_300_mib_is_emsgsize_without_a_read(
    make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    fd = make_file(b"")
    os.truncate(fd, 300 * 1024 * 1024)
    reads = log_preads(monkeypatch)
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with one, other:
        batch = IOBatch()
        batch.addfile(fd)
        assert iob_sendmsg(one, batch) == IOB_ERROR
        assert batch.error is not None
        assert batch.error.errno == errno.EMSGSIZE
        assert (batch.bytesleft, reads) == (300 * 1024 * 1024, [])


def test_refused_datagram_fails_the_next_message() -> None:
    """The ICMP error that answers a datagram is reported by the next send (udp(7))."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one, refusing_udp() as refusing:
        one.connect(refusing.getsockname())
        batch = IOBatch()
        batch.addbuf(b"first")
        assert iob_sendmsg(one, batch) == 5
        wait_for_error(one)
        batch.addbuf(b"second")
        assert iob_sendmsg(one, batch) == IOB_ERROR
    assert isinstance(batch.error, ConnectionRefusedError)
    assert batch.bytesleft == 6


@pytest.mark.parametrize("header", [b"", b"header"])
def test_truncated_file_is_an_error_before_a_byte_is_sent(
    header: bytes, make_file: MakeFile
) -> None:
    fd = make_file(data(1000))
    batch = IOBatch()
    batch.addbuf(header)
    batch.addfile(fd)
    os.ftruncate(fd, 400)
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with one, other:
        assert iob_sendmsg(one, batch) == IOB_ERROR
        assert is_silent(other)
    error = batch.error
    assert isinstance(error, TruncatedFileError)
    assert (error.fd, error.offset, error.missing) == (fd, 400, 600)
    assert (batch.bytesleft, batch.bytessent) == (1000 + len(header), 0)
    check_invariants(batch)


def test_directory_is_an_error_before_a_byte_is_sent(tmp_path: Any) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    batch = IOBatch()
    batch.addbuf(b"header")
    batch.addfile(fd, 0, 10)
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with one, other:
        assert iob_sendmsg(one, batch) == IOB_ERROR
        assert is_silent(other)
    os.close(fd)
    assert isinstance(batch.error, IsADirectoryError)
    assert batch.bytesleft == 16


@pytest.mark.parametrize(
    ("flags", "error"), [(2**40, OverflowError), (1.5, TypeError), ("1", TypeError)]
)
def test_bad_flags_raise_before_a_byte_is_sent(flags: Any, error: type[Exception]) -> None:
    batch = IOBatch()
    with Scripted() as sock:
        for _ in range(2):
            with pytest.raises(error):
                iob_sendmsg(sock, batch, flags=flags)
            batch.addbuf(b"hello")
        assert sock.calls == []
    check_invariants(batch)
