"""The arguments of iob_send that are refused, and subclasses of socket."""

from __future__ import annotations

import socket
import ssl
from typing import TYPE_CHECKING, Any

import pytest

from iobatch import IOBatch, iob_send, iob_sendmsg
from tests.support.batches import check_invariants, data
from tests.support.fakes import Scripted
from tests.support.send import LARGE, make_response
from tests.support.sockets import is_silent, receive, stream_pair

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.batches import MakeFile


@pytest.mark.parametrize(
    ("limit", "error"), [(0, ValueError), (-1, ValueError), ("1", TypeError), (1.5, TypeError)]
)
def test_bad_limit_raises_and_sends_nothing(limit: Any, error: type[Exception]) -> None:
    batch = IOBatch()
    batch.addbuf(b"hello")
    with Scripted() as sock:
        with pytest.raises(error):
            iob_send(sock, batch, limit=limit)
        assert sock.calls == []
    assert batch.bytesleft == 5


@pytest.mark.parametrize("bad", ["name", None, 1.5, object()], ids=lambda bad: type(bad).__name__)
def test_object_without_a_descriptor_is_refused(bad: Any) -> None:
    """The batch may be empty or not."""
    batch = IOBatch()
    with pytest.raises(TypeError):
        iob_send(bad, batch)
    batch.addbuf(b"hello")
    with pytest.raises(TypeError):
        iob_send(bad, batch)
    check_invariants(batch)


def test_flags_with_a_descriptor_or_file_are_refused(tmp_path: Path) -> None:
    """write(2) has no flags."""
    batch = IOBatch()
    batch.addbuf(b"hello")
    with stream_pair() as (one, other), (tmp_path / "file").open("wb") as file:
        for sock in (one.fileno(), file):
            with pytest.raises(ValueError):
                iob_send(sock, batch, flags=socket.MSG_DONTWAIT)
        assert is_silent(other)
    assert (tmp_path / "file").stat().st_size == 0
    assert batch.bytesleft == 5


def test_ssl_socket_is_refused_before_a_byte_is_sent(make_file: MakeFile) -> None:
    """Sent to its descriptor, the bytes would be plain text. The batch may be empty or not."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    batch = IOBatch()
    with stream_pair() as (one, other):
        with context.wrap_socket(one, do_handshake_on_connect=False) as secure:
            for size in (0, 100, LARGE):
                batch.addfile(make_file(data(size)))
                with pytest.raises(TypeError):
                    iob_send(secure, batch)
                with pytest.raises(TypeError):
                    iob_sendmsg(secure, batch)
                assert is_silent(other)
        assert batch.bytesleft == 100 + LARGE


def test_object_with_do_handshake_is_refused() -> None:
    """Sent to the descriptor of pyOpenSSL's Connection, the bytes would be plain text."""

    class Connection:
        """A stand-in for OpenSSL.SSL.Connection."""

        def __init__(self, sock: socket.socket) -> None:
            self.sock = sock

        def __getattr__(self, name: str) -> Any:
            return getattr(self.sock, name)

        def do_handshake(self) -> None:
            raise AssertionError("a refused socket must not shake hands")

    batch = IOBatch()
    batch.addbuf(b"secret")
    with stream_pair() as (one, other):
        connection: Any = Connection(one)
        for refused in (iob_send, iob_sendmsg):
            with pytest.raises(TypeError):
                refused(connection, batch)
        assert is_silent(other)
    assert batch.bytesleft == 6


def test_subclass_of_socket_is_sent_to_with_flags(make_file: MakeFile) -> None:
    class Subclass(socket.socket):
        pass

    batch, wanted = make_response(make_file, 1000)
    with stream_pair() as (plain, other), Subclass(fileno=plain.detach()) as one:
        assert iob_send(one, batch, flags=socket.MSG_DONTWAIT) == 1500
        assert receive(other, 1500) == wanted
