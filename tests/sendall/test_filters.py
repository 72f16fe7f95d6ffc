"""Filters: after the batch iob_sendall drains a callback that has drain."""

from __future__ import annotations

import errno
import selectors
import socket
import ssl
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from iobatch import IOB_AGAIN, IOB_DONE, IOB_ERROR, IOBatch, iob_sendall
from iobatch.filters import Chunked, Filter
from tests.support.batches import batch_of, check_invariants
from tests.support.filters import Identity
from tests.support.sockets import PATIENCE, clog, is_silent, receive_all, stream_pair
from tests.support.tls import TLSClient, tls_contexts

if TYPE_CHECKING:
    import trustme


class ScriptedFilter:
    """A stand-in for a Filter: a callback that takes everything, and a scripted drain."""

    def __init__(self, *script: int) -> None:
        self.script = list(script)
        self.drains: list[Any] = []
        self.error: OSError | None = None
        self.wants = selectors.EVENT_WRITE
        self.bytesleft = 0

    def __call__(self, _sock: object, view: memoryview) -> int:
        assert not self.drains, "drain was called before all of the batch was written"
        self.bytesleft += len(view)
        return len(view)

    def drain(self, sock: object) -> int:
        self.drains.append(sock)
        code = self.script.pop(0) if self.script else IOB_DONE
        if code == IOB_DONE:
            self.bytesleft = 0
        return code

    def finish(self, sock: object) -> int:
        raise AssertionError("only the caller may call finish")


def test_filter_is_drained_until_it_returns_done() -> None:
    """Bytes sent by drain are neither counted nor reported as progress."""
    steps: list[int] = []
    with stream_pair() as (one, _other):
        callback = ScriptedFilter(7, IOB_AGAIN, 3, IOB_AGAIN, IOB_AGAIN)
        sent = iob_sendall(one, batch_of(b"hello"), callback, progress=steps.append)
        assert (sent, sum(steps)) == (5, 5)
        assert callback.drains == [one] * 6


def test_filter_is_drained_even_if_the_batch_is_empty() -> None:
    with stream_pair() as (one, _other):
        callback = ScriptedFilter(7)
        assert iob_sendall(one, IOBatch(), callback) == 0
        assert callback.drains == [one] * 2


def test_error_of_the_filter_is_raised_when_drain_fails() -> None:
    with stream_pair() as (one, _other):
        callback = ScriptedFilter(IOB_ERROR)
        callback.error = ConnectionResetError(errno.ECONNRESET, "scripted")
        with pytest.raises(ConnectionResetError):
            iob_sendall(one, batch_of(b"hello"), callback)


def test_wait_during_drain_follows_the_wants_of_the_filter() -> None:
    """The socket is readable, but never writable."""
    with stream_pair() as (one, other):
        clog(one)
        other.send(b"?")
        callback = ScriptedFilter(IOB_AGAIN)
        callback.wants = selectors.EVENT_READ
        assert iob_sendall(one, batch_of(b"hello"), callback, timeout=PATIENCE) == 5


@pytest.mark.parametrize("held", [0, 100])
def test_timeout_bounds_the_drain_whatever_bytesleft_is(held: int) -> None:
    with stream_pair() as (one, _other):
        clog(one)
        callback = ScriptedFilter(*[IOB_AGAIN] * 1000, IOB_ERROR)
        callback.error = OSError("the timeout did not end the drain")
        batch = batch_of(b"hello")
        callback.bytesleft = held
        with pytest.raises(TimeoutError):
            iob_sendall(one, batch, callback, timeout=0.01)
        assert batch.bytessent == 5


def send_through(sock: Any, batch: IOBatch, pipeline: Any, **options: Any) -> None:
    """Send a batch, and check that no call waits: select would return at once, again and again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("iobatch._sendall.DefaultSelector", None)
        iob_sendall(sock, batch, pipeline, **options)


def pipelines(tls: Filter) -> dict[str, Filter]:
    """Return pipelines in which TLS is the last filter, the first, or in the middle."""
    last: Any = socket.socket.send
    tls_before_a_callback = Filter(tls._transform, last)
    return {
        "TLS": tls,
        "Chunked, TLS": Filter(Chunked(), tls),
        "gzip, Chunked, TLS": Filter(zlib.compressobj(), Filter(Chunked(), tls)),
        "TLS, callback": tls_before_a_callback,
        "Chunked, TLS, callback": Filter(Chunked(), tls_before_a_callback),
        "TLS, Identity": Filter(tls._transform, Filter(Identity())),
    }


PIPELINES = (
    "TLS",
    "Chunked, TLS",
    "gzip, Chunked, TLS",
    "TLS, callback",
    "Chunked, TLS, callback",
    "TLS, Identity",
)


@pytest.mark.parametrize("readable", [False, True])
@pytest.mark.parametrize("timeout", [None, 0, PATIENCE])
@pytest.mark.parametrize("name", PIPELINES)
def test_filter_that_must_read_raises_ssl_want_read_error(
    authority: trustme.CA, name: str, timeout: float | None, *, readable: bool
) -> None:
    """A server waits for the client's first message, which iob_sendall would leave in the socket.

    A filter before TLS takes the batch, so the error comes while it is drained.
    """
    pipeline = pipelines(TLSClient(authority).filter)[name]
    batch = batch_of(b"hello")
    with stream_pair() as (one, other):
        if readable:
            other.send(b"the client's first message")
        for _ in range(2):
            with pytest.raises(ssl.SSLWantReadError, match="must read") as caught:
                send_through(one, batch, pipeline, timeout=timeout)
            assert caught.value.reason is None  # as in the ssl module's own errors
            assert one.gettimeout() is None
        assert batch.error is None
        check_invariants(batch)
        assert is_silent(other)


def test_batch_continues_after_the_filter_was_given_what_the_peer_sent(
    authority: trustme.CA,
) -> None:
    """A program without a loop shakes hands like this."""
    client = TLSClient(authority)
    batch = batch_of(b"hello")
    received = []

    def receive_plain(peer: socket.socket) -> bytes:
        _, context = tls_contexts(authority)
        with context.wrap_socket(peer, server_hostname="localhost") as conn:
            return conn.recv(5)

    with stream_pair() as (one, other), ThreadPoolExecutor(1) as pool:
        reader = pool.submit(receive_plain, other)
        while batch:
            try:
                assert iob_sendall(one, batch, client.filter) == 5
            except ssl.SSLWantReadError:
                received.append(client.tls.receive(one.recv(65536)))
        assert received == [b"", b""]
        assert reader.result(PATIENCE) == b"hello"


def test_callback_after_a_filter_that_reads_by_itself_is_waited_for() -> None:
    """ssl.SSLSocket.send reads where TLS needs it, so the wait for reading ends."""
    reads = []
    with stream_pair() as (one, other):
        clog(one)  # so that it is readable only

        def callback(sock: socket.socket, view: memoryview) -> int:
            if not reads:
                reads.append(b"")
                other.send(b"?")
                raise ssl.SSLWantReadError
            reads.append(sock.recv(1))
            return len(view)

        for pipeline in (
            Filter(Chunked(), callback),
            Filter(Identity(), Filter(Chunked(), callback)),
        ):
            reads.clear()
            assert iob_sendall(one, batch_of(b"hello"), pipeline, timeout=PATIENCE) == 5
            assert reads == [b"", b"?"]


def test_ssl_socket_after_a_filter_is_waited_for_during_its_handshake(
    authority: trustme.CA,
) -> None:
    server, client = tls_contexts(authority)

    def receive_plain(peer: socket.socket) -> bytes:
        with client.wrap_socket(peer, server_hostname="localhost") as conn:
            return receive_all(conn)

    with (
        stream_pair() as (one, other),
        ThreadPoolExecutor(1) as pool,
        server.wrap_socket(one, server_side=True, do_handshake_on_connect=False) as conn,
    ):
        reader = pool.submit(receive_plain, other)
        pipeline = Filter(Chunked(), ssl.SSLSocket.send)
        assert iob_sendall(conn, batch_of(b"hello"), pipeline, timeout=PATIENCE) == 5
        conn.shutdown(socket.SHUT_WR)
        assert reader.result(PATIENCE) == b"5\r\nhello\r\n"
