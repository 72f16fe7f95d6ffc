"""The arguments of iob_send that are refused, and subclasses of socket."""

from __future__ import annotations

import asyncio
import socket
import socketserver
import ssl
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from iobatch import IOBatch, iob_send, iob_sendmsg
from tests.support.batches import batch_of, check_invariants, data
from tests.support.fakes import Scripted
from tests.support.loops import both_loops
from tests.support.send import LARGE, make_response
from tests.support.sockets import is_silent, receive, stream_pair
from tests.support.tls import tls_contexts

if TYPE_CHECKING:
    from pathlib import Path

    import trustme

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


@pytest.mark.parametrize(
    ("flags", "error"), [(2**31, OverflowError), (1.5, TypeError), ("1", TypeError)]
)
def test_bad_flags_raise_and_send_nothing(flags: Any, error: type[Exception]) -> None:
    """The batch may be empty or not."""
    batch = IOBatch()
    with Scripted() as sock:
        for _ in range(2):
            with pytest.raises(error):
                iob_send(sock, batch, flags=flags)
            batch.addbuf(b"hello")
        assert sock.calls == []
    check_invariants(batch)


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


async def check_transport_sockets_are_refused(
    server: ssl.SSLContext | None, client: ssl.SSLContext | None
) -> None:
    """Check that iob_send refuses the sockets of both ends of a connection, with TLS or without."""
    accepted: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()
    listener = await asyncio.start_server(
        lambda _reader, writer: accepted.put_nowait(writer), "127.0.0.1", 0, ssl=server
    )
    port = listener.sockets[0].getsockname()[1]
    name = "localhost" if client else None
    _, ours = await asyncio.open_connection("127.0.0.1", port, ssl=client, server_hostname=name)
    batch = IOBatch()
    writers = (ours, await accepted.get())
    try:
        for writer in writers:
            sock = writer.get_extra_info("socket")
            for _ in range(2):
                with pytest.raises(TypeError, match="socket of a transport"):
                    iob_send(sock, batch)
                with pytest.raises(TypeError):
                    iob_sendmsg(sock, batch)
                batch.addbuf(b"secret")
        assert batch.bytessent == 0
    finally:
        listener.close()
        for writer in writers:
            writer.transport.abort()
        for writer in writers:
            with suppress(OSError):
                await writer.wait_closed()


@both_loops
async def test_socket_of_a_tls_transport_is_refused(authority: trustme.CA) -> None:
    """Sent to its descriptor, the bytes would be plain text."""
    await check_transport_sockets_are_refused(*tls_contexts(authority))


@both_loops
async def test_socket_of_a_plain_transport_is_refused() -> None:
    """It can't be told from that of a TLS transport, and the transport may hold earlier bytes."""
    await check_transport_sockets_are_refused(None, None)


@pytest.mark.parametrize("kind", ["wb", "wb without a buffer", "w", "wfile"])
def test_file_object_of_a_tls_socket_is_refused(kind: str) -> None:
    """Its descriptor is the socket's. A plain socket's file object is sent to."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    batch = batch_of(b"secret")
    with stream_pair() as (one, other):

        def open_file(sock: Any) -> Any:
            if kind == "wfile":  # that of an HTTP server's handler
                return socketserver._SocketWriter(sock)  # type: ignore[attr-defined]
            mode, _, unbuffered = kind.partition(" ")
            return sock.makefile(mode, buffering=0) if unbuffered else sock.makefile(mode)

        with context.wrap_socket(one.dup(), do_handshake_on_connect=False) as secure:
            file = open_file(secure)
            with pytest.raises(TypeError, match="file object of a TLS socket"):
                iob_send(file, batch)
            file.close()
        assert is_silent(other)
        file = open_file(one)
        assert iob_send(file, batch) == 6
        assert receive(other, 6) == b"secret"
        file.close()
