"""The TLS handshake: its messages, and what a filter wants until it is done."""

from __future__ import annotations

import errno
import select
import ssl
import threading
from contextlib import suppress
from selectors import EVENT_READ, EVENT_WRITE
from typing import TYPE_CHECKING, Any

import pytest

from iobatch import IOB_AGAIN, IOB_DONE, IOB_ERROR, iob_write
from iobatch.filters import TLS, Filter
from tests.support.batches import batch_of, data
from tests.support.fakes import Scripted, again
from tests.support.filters import (
    BODY,
    Identity,
    assert_refused,
    step_until_done,
    write_and_finish,
    write_while_taken,
)
from tests.support.sockets import PATIENCE, receive_all, stream_pair
from tests.support.tls import TLS_VERSIONS, TLSClient, tls_contexts

if TYPE_CHECKING:
    import trustme


def test_nothing_is_taken_before_the_handshake_is_done(
    authority: trustme.CA, sock: Scripted
) -> None:
    """The filter wants to write while it holds handshake messages, else to read the client's."""
    client = TLSClient(authority)
    batch = batch_of(BODY)
    assert iob_write(sock, batch, client.filter) == IOB_AGAIN
    assert batch.wants == client.filter.wants == EVENT_READ
    with pytest.raises(ssl.SSLWantReadError):
        client.sslobject.do_handshake()
    client.tls.receive(client.outgoing.read())
    # While the filter holds a part of its messages, the client can't answer them.
    sock.script.extend([100, again()])
    codes = [iob_write(sock, batch, client.filter) for _ in range(2)]
    assert codes == [IOB_AGAIN, IOB_AGAIN]
    assert batch.wants == client.filter.wants == EVENT_WRITE
    assert client.filter.bytesleft
    assert iob_write(sock, batch, client.filter) == IOB_AGAIN
    assert batch.wants == client.filter.wants == EVENT_READ
    assert batch.bytesleft == len(BODY)
    client.incoming.write(bytes(sock.taken))
    sock.taken.clear()
    client.sslobject.do_handshake()
    client.tls.receive(client.outgoing.read())
    write_and_finish(sock, batch, client.filter)
    assert client.filter.wants == EVENT_WRITE
    assert client.read(bytes(sock.taken)) == BODY


def test_filter_above_tls_wants_to_read_during_the_handshake(
    authority: trustme.CA, sock: Scripted
) -> None:
    client = TLSClient(authority)
    pipeline = Filter(Identity(), client.filter, high_water=1000)
    batch = batch_of(data(5000))
    assert write_while_taken(sock, batch, pipeline) == IOB_DONE
    assert pipeline.drain(sock) == IOB_AGAIN
    assert pipeline.wants == EVENT_READ
    batch = batch_of(b"more")
    assert iob_write(sock, batch, pipeline) == IOB_AGAIN
    assert batch.wants == EVENT_READ


@pytest.mark.parametrize("version", TLS_VERSIONS, ids=lambda version: version.name)
def test_caller_of_the_sslobject_and_bios_needs_no_receive(
    version: ssl.TLSVersion, authority: trustme.CA, sock: Scripted
) -> None:
    client = TLSClient(authority, version)
    incoming = client.tls._incoming
    for _ in range(3):
        for sslobject in (client.sslobject, client.server):
            with suppress(ssl.SSLWantReadError):
                sslobject.do_handshake()
            incoming.write(client.outgoing.read())
            step_until_done(sock, lambda: client.filter.drain(sock), client.filter)
            client.incoming.write(bytes(sock.taken))
            sock.taken.clear()
    client.sslobject.write(b"a question")
    incoming.write(client.outgoing.read())
    assert client.server.read(100) == b"a question"
    write_and_finish(sock, batch_of(b"an answer"), client.filter)
    assert client.read(bytes(sock.taken)) == b"an answer"


def test_client_side_filter_starts_the_handshake_at_its_first_write(authority: trustme.CA) -> None:
    server_context, client_context = tls_contexts(authority, ssl.TLSVersion.TLSv1_3)
    with stream_pair() as (one, other):
        received: list[bytes] = []

        def serve() -> None:
            with server_context.wrap_socket(
                other, server_side=True, suppress_ragged_eofs=False
            ) as conn:
                received.append(receive_all(conn))

        thread = threading.Thread(target=serve)
        thread.start()
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        sslobject = client_context.wrap_bio(incoming, outgoing, server_hostname="localhost")
        tls = TLS(sslobject, incoming, outgoing)
        pipeline = Filter(tls)
        one.setblocking(False)
        with batch_of(BODY) as batch:
            while code := iob_write(one, batch, pipeline) or pipeline.finish(one):
                assert code != IOB_ERROR, pipeline.error
                if code == IOB_AGAIN:
                    reading = pipeline.wants == EVENT_READ
                    ready = select.select([one] * reading, [one] * (not reading), [], PATIENCE)
                    assert ready[0] or ready[1]
                    if reading:
                        assert tls.receive(one.recv(65536)) == b""
        thread.join(PATIENCE)
    assert received == [BODY]


def test_finish_without_data_completes_the_handshake_first(
    authority: trustme.CA, sock: Scripted
) -> None:
    """A stream without data ends with close_notify too."""
    client = TLSClient(authority)
    with pytest.raises(ssl.SSLWantReadError):
        client.sslobject.do_handshake()
    client.tls.receive(client.outgoing.read())
    assert client.filter.finish(sock) > 0  # handshake messages
    assert client.filter.finish(sock) == IOB_AGAIN
    assert client.filter.wants == EVENT_READ
    client.incoming.write(bytes(sock.taken))
    sock.taken.clear()
    client.sslobject.do_handshake()
    client.tls.receive(client.outgoing.read())
    step_until_done(sock, lambda: client.filter.finish(sock), client.filter)
    assert client.read(bytes(sock.taken)) == b""


@pytest.mark.parametrize("drained", [True, False])
def test_failed_handshake_is_reported_by_an_alert_and_named_in_the_error(
    *, drained: bool, authority: trustme.CA, sock: Scripted
) -> None:
    """It fails in receive(), before any write; drain() or the first write sends the alert."""
    client = TLSClient(authority, ssl.TLSVersion.TLSv1_3)
    client.sslobject.context.maximum_version = ssl.TLSVersion.TLSv1_2
    client.sslobject = client.sslobject.context.wrap_bio(
        client.incoming, client.outgoing, server_hostname="localhost"
    )
    with pytest.raises(ssl.SSLWantReadError):
        client.sslobject.do_handshake()
    hello = client.outgoing.read()
    for _ in range(2):
        with pytest.raises(ssl.SSLError, match="UNSUPPORTED_PROTOCOL"):
            client.tls.receive(hello)
    if drained:
        step_until_done(sock, lambda: client.filter.drain(sock), client.filter)
        assert client.filter.error is None
    assert iob_write(sock, batch_of(b"data"), client.filter) == IOB_ERROR
    assert_refused(sock, client.filter, ssl.SSLError, "UNSUPPORTED_PROTOCOL")
    client.incoming.write(bytes(sock.taken))
    with pytest.raises(ssl.SSLError, match="ALERT_PROTOCOL_VERSION"):
        client.sslobject.do_handshake()


@pytest.mark.parametrize("ending", ["write", "finish"])
def test_failed_handshake_is_the_error_even_if_the_peer_is_gone(
    ending: str, authority: trustme.CA, sock: Scripted
) -> None:
    """Then the alert can't be sent, but a bare BrokenPipeError would hide the reason."""
    client = TLSClient(authority)
    with pytest.raises(ssl.SSLError, match="HTTP_REQUEST"):
        client.tls.receive(b"GET / HTTP/1.1\r\n\r\n")
    client.tls._outgoing.write(b"an alert")  # OpenSSL has none for this error
    sock.script.append(BrokenPipeError(errno.EPIPE, "gone"))
    if ending == "finish":
        assert client.filter.finish(sock) == IOB_ERROR
    else:
        assert iob_write(sock, batch_of(b"data"), client.filter) == IOB_ERROR
    assert_refused(sock, client.filter, ssl.SSLError, "HTTP_REQUEST")
    assert len(sock.calls) == 1


def test_receive_refuses_what_has_no_buffer_and_changes_nothing(authority: trustme.CA) -> None:
    server, _ = tls_contexts(authority)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = TLS(server.wrap_bio(incoming, outgoing, server_side=True), incoming, outgoing)
    wrong: Any = ""
    with pytest.raises(TypeError, match="bytes-like"):
        tls.receive(wrong)
    assert not tls.ended
    assert not incoming.eof
