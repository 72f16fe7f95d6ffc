"""The end of a TLS stream: close_notify, alerts, and an end of stream without either."""

from __future__ import annotations

import gzip
import select
import ssl
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from iobatch import IOB_DONE, IOB_ERROR, iob_write
from iobatch.filters import TLS, Filter
from tests.support.batches import batch_of, data
from tests.support.fakes import Scripted, again
from tests.support.filters import (
    BODY,
    assert_refused,
    step_until_done,
    step_when_writable,
    write_and_finish,
    write_while_taken,
)
from tests.support.sockets import PATIENCE, stream_pair
from tests.support.tls import TLS_VERSIONS, MemoryClient, TLSClient, tls_contexts

if TYPE_CHECKING:
    import socket

    import trustme


def test_error_for_close_notify_has_the_attributes_of_the_ssl_modules_own_errors(
    half_closed: TLSClient,
) -> None:
    with pytest.raises(ssl.SSLZeroReturnError) as caught:
        half_closed.tls.receive(b"")
    assert caught.value.reason is None
    assert caught.value.library is None


def test_unread_input_does_not_prevent_close_notify(tls_client: TLSClient, sock: Scripted) -> None:
    tls_client.sslobject.write(data(50_000))
    tls_client.tls._incoming.write(tls_client.outgoing.read())
    write_and_finish(sock, batch_of(BODY), tls_client.filter)
    assert tls_client.read(bytes(sock.taken)) == BODY


def test_close_notify_is_sent_after_the_peers_close_notify(
    tls_client: TLSClient, sock: Scripted
) -> None:
    with pytest.raises(ssl.SSLWantReadError):
        tls_client.sslobject.unwrap()
    with pytest.raises(ssl.SSLZeroReturnError):
        tls_client.tls.receive(tls_client.outgoing.read())
    step_until_done(sock, lambda: tls_client.filter.finish(sock), tls_client.filter)
    tls_client.incoming.write(bytes(sock.taken))
    tls_client.sslobject.unwrap()


def send_close_notify(client: TLSClient) -> bytes:
    """Have the client send close_notify; return its output."""
    with pytest.raises(ssl.SSLWantReadError):
        client.sslobject.unwrap()
    return client.outgoing.read()


@pytest.fixture
def half_closed(authority: trustme.CA) -> TLSClient:
    """Give a TLS 1.3 connection whose client has sent close_notify, which the server has read."""
    client = TLSClient(authority)
    client.shake_hands()
    with pytest.raises(ssl.SSLZeroReturnError):
        client.tls.receive(send_close_notify(client))
    return client


def test_peers_close_notify_ends_only_its_direction_in_tls_1_3(
    half_closed: TLSClient, sock: Scripted
) -> None:
    """The end of the stream that follows it is no error either."""
    pipeline = Filter(zlib.compressobj(wbits=31), half_closed.filter)
    with pytest.raises(ssl.SSLZeroReturnError):
        half_closed.tls.receive(b"")
    write_and_finish(sock, batch_of(BODY), pipeline)
    assert gzip.decompress(half_closed.read(bytes(sock.taken))) == BODY


def test_peers_close_notify_ends_both_directions_in_tls_1_2(
    authority: trustme.CA, sock: Scripted
) -> None:
    """OpenSSL would write."""
    client = TLSClient(authority, ssl.TLSVersion.TLSv1_2)
    client.shake_hands()
    with pytest.raises(ssl.SSLZeroReturnError):
        client.tls.receive(send_close_notify(client))
    assert_refused(sock, client.filter, ssl.SSLZeroReturnError, "close_notify")
    assert client.filter.finish(sock) == IOB_ERROR  # works only without a refused write
    assert not sock.taken


def test_data_in_the_piece_of_close_notify_is_returned_first_and_can_be_answered(
    tls_client: TLSClient, sock: Scripted
) -> None:
    """In TLS 1.2 it can be answered until receive() has raised SSLZeroReturnError."""
    tls_client.sslobject.write(b"last data")
    assert not tls_client.tls.ended
    assert tls_client.tls.receive(send_close_notify(tls_client)) == b"last data"
    assert tls_client.tls.ended
    batch = batch_of(b"an answer")
    assert write_while_taken(sock, batch, tls_client.filter) == IOB_DONE
    for _ in range(2):
        with pytest.raises(ssl.SSLZeroReturnError, match="close_notify"):
            tls_client.tls.receive(b"ignored")
    if tls_client.server.version() == "TLSv1.2":
        assert_refused(sock, tls_client.filter, ssl.SSLZeroReturnError)
    else:
        write_and_finish(sock, batch_of(b", and more"), tls_client.filter)
        assert tls_client.read(bytes(sock.taken)) == b"an answer, and more"


def test_handshake_data_and_close_notify_in_one_piece(authority: trustme.CA) -> None:
    """The version is known when the close_notify is read."""
    client = TLSClient(authority)
    with Scripted() as sock:
        with pytest.raises(ssl.SSLWantReadError):
            client.sslobject.do_handshake()
        assert client.tls.receive(client.outgoing.read()) == b""
        step_until_done(sock, lambda: client.filter.drain(sock), client.filter)
        assert client.server.version() is None
        client.incoming.write(bytes(sock.taken))
        sock.taken.clear()
        client.sslobject.do_handshake()
        client.sslobject.write(b"a question")
        assert client.tls.receive(send_close_notify(client)) == b"a question"
        with pytest.raises(ssl.SSLZeroReturnError):
            client.tls.receive(b"")
        write_and_finish(sock, batch_of(b"an answer"), client.filter)
        assert client.read(bytes(sock.taken)) == b"an answer"


@pytest.mark.parametrize("version", TLS_VERSIONS, ids=lambda version: version.name)
def test_close_notify_during_the_handshake_ends_writing(
    version: ssl.TLSVersion, authority: trustme.CA, sock: Scripted
) -> None:
    """The handshake can't be done any more, so nothing waits for it."""
    for finishes in (False, True):
        client = TLSClient(authority, version)
        with pytest.raises(ssl.SSLWantReadError):
            client.sslobject.do_handshake()
        client.tls.receive(client.outgoing.read())
        with pytest.raises(ssl.SSLZeroReturnError):
            client.tls.receive(bytes.fromhex("15 0303 0002 01 00"))  # an alert: close_notify
        if finishes:
            assert client.filter.finish(sock) == IOB_ERROR
        assert_refused(sock, client.filter, ssl.SSLZeroReturnError, "close_notify")


def test_output_pending_at_the_peers_close_notify_is_sent_in_tls_1_3(authority: trustme.CA) -> None:
    client = TLSClient(authority)
    client.shake_hands()
    with Scripted(1000, again(), again()) as sock:
        assert iob_write(sock, batch_of(b"before, "), client.filter) == 8
        batch = batch_of(BODY)
        assert iob_write(sock, batch, client.filter, limit=5000) == 5000
        assert client.filter.bytesleft > 4000
        with pytest.raises(ssl.SSLZeroReturnError):
            client.tls.receive(send_close_notify(client))
        write_and_finish(sock, batch, client.filter)
        assert client.read(bytes(sock.taken)) == b"before, " + BODY


def test_peer_may_write_after_our_close_notify_in_tls_1_3(
    authority: trustme.CA, sock: Scripted
) -> None:
    """finish() ends our direction only."""
    client = TLSClient(authority)
    client.shake_hands()
    write_and_finish(sock, batch_of(b"all"), client.filter)
    assert client.read(bytes(sock.taken)) == b"all"
    for number in range(2):
        client.sslobject.write(b"%d" % number)
        assert client.tls.receive(client.outgoing.read()) == b"%d" % number
    with suppress(ssl.SSLWantReadError):
        client.sslobject.unwrap()
    with pytest.raises(ssl.SSLZeroReturnError):
        client.tls.receive(client.outgoing.read())


def test_alert_after_close_notify_is_ignored(half_closed: TLSClient, sock: Scripted) -> None:
    """RFC 8446, section 6.1: so is everything that follows close_notify."""
    with pytest.raises(ssl.SSLZeroReturnError):
        half_closed.tls.receive(b"nonsense")
    write_and_finish(sock, batch_of(b"an answer"), half_closed.filter)
    assert half_closed.read(bytes(sock.taken)) == b"an answer"


def half_close(sock: socket.socket, context: ssl.SSLContext, request: bytes) -> bytes:
    """Send a request and close_notify, then receive the answer."""
    sock.settimeout(PATIENCE)
    client = MemoryClient(sock, context, "localhost")
    client.drive(client.tls.do_handshake, 1 << 16)
    while request:
        request = request[client.drive(partial(client.tls.write, request), 1 << 16) :]
    # That of an SSLSocket takes the answer for an error if it has arrived by then.
    with suppress(ssl.SSLWantReadError):
        client.tls.unwrap()
    sock.sendall(client.outgoing.read())
    return client.read_all()


def test_client_that_half_closes_gets_a_whole_answer_over_a_socket(authority: trustme.CA) -> None:
    """The server reads up to close_notify, in whatever pieces, before it answers."""
    server_context, client_context = tls_contexts(authority, ssl.TLSVersion.TLSv1_3)
    with ThreadPoolExecutor() as pool, stream_pair("tcp4") as (one, other):
        answer = pool.submit(half_close, other, client_context, BODY)
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = TLS(server_context.wrap_bio(incoming, outgoing, server_side=True), incoming, outgoing)
        pipeline = Filter(tls)
        one.setblocking(False)
        received = bytearray()
        while not tls.ended:
            assert select.select([one], [], [], PATIENCE)[0]
            with suppress(ssl.SSLZeroReturnError):
                received += tls.receive(one.recv(65536))
            step_when_writable(lambda: pipeline.drain(one), one, pipeline)
        assert received == BODY
        with batch_of(BODY[::-1]) as batch:
            step_when_writable(lambda: iob_write(one, batch, pipeline), one, pipeline)
        step_when_writable(lambda: pipeline.finish(one), one, pipeline)
        assert answer.result(PATIENCE) == BODY[::-1]


def test_end_of_stream_without_close_notify_is_an_error(
    tls_client: TLSClient, sock: Scripted
) -> None:
    """An attacker may have cut the stream off."""
    with pytest.raises(ssl.SSLEOFError):
        tls_client.tls.receive(b"")
    assert_refused(sock, tls_client.filter, ssl.SSLEOFError)


def test_finish_fails_if_unwrap_fails_before_close_notify_is_written(
    tls_client: TLSClient, sock: Scripted
) -> None:
    """Only an error after close_notify was written is ignored."""
    tls_client.tls._incoming.write_eof()
    with pytest.raises(ssl.SSLEOFError):
        tls_client.server.read(1)
    assert tls_client.filter.finish(sock) == IOB_ERROR
    assert isinstance(tls_client.filter.error, ssl.SSLError)


def test_unwrap_without_output_may_raise_want_read_but_no_other_error(sock: Scripted) -> None:
    """SSLWantReadError: close_notify was written before, and the peer's has not arrived."""

    def finish(exc: ssl.SSLError) -> int:
        def raising() -> None:
            raise exc

        fake: Any = SimpleNamespace(do_handshake=lambda: None, unwrap=raising)
        return Filter(TLS(fake, ssl.MemoryBIO(), ssl.MemoryBIO())).finish(sock)

    assert finish(ssl.SSLError(1, "protocol is shutdown")) == IOB_ERROR
    assert finish(ssl.SSLWantReadError(2, "scripted")) == IOB_DONE


def test_peers_alert_ends_writing_and_is_named_in_the_error(
    tls_client: TLSClient, sock: Scripted
) -> None:
    batch = batch_of(b"a record that is corrupted in transit")
    assert write_while_taken(sock, batch, tls_client.filter) == IOB_DONE
    sock.taken[-1] ^= 1
    tls_client.incoming.write(bytes(sock.taken))
    with pytest.raises(ssl.SSLError, match="BAD_RECORD_MAC"):
        tls_client.sslobject.read(100)
    alert = tls_client.outgoing.read()
    for _ in range(2):
        with pytest.raises(ssl.SSLError, match="ALERT_BAD_RECORD_MAC"):
            tls_client.tls.receive(alert)
    assert_refused(sock, tls_client.filter, ssl.SSLError, "ALERT_BAD_RECORD_MAC")


def test_finish_after_an_alert_fails_and_sends_no_close_notify(
    tls_client: TLSClient, sock: Scripted
) -> None:
    tls_client.tls._receive_error = ssl.SSLError(1, "an alert")
    assert tls_client.filter.finish(sock) == IOB_ERROR
    assert str(tls_client.filter.error) == str(tls_client.tls._receive_error)
    assert tls_client.filter.error is not tls_client.tls._receive_error
    assert not sock.taken


def test_data_before_a_bad_record_is_returned_before_its_error(
    tls_client: TLSClient, sock: Scripted
) -> None:
    """drain() then sends the alert for the bad record."""
    tls_client.sslobject.write(b"data")
    first = tls_client.outgoing.read()
    tls_client.sslobject.write(b"corrupt")
    second = bytearray(tls_client.outgoing.read())
    second[-1] ^= 1
    assert tls_client.tls.receive(first + second) == b"data"
    with pytest.raises(ssl.SSLError, match="BAD_RECORD_MAC"):
        tls_client.tls.receive(b"more")
    step_until_done(sock, lambda: tls_client.filter.drain(sock), tls_client.filter)
    tls_client.incoming.write(bytes(sock.taken))
    with pytest.raises(ssl.SSLError, match="ALERT_BAD_RECORD_MAC"):
        tls_client.sslobject.read(100)
    assert_refused(sock, tls_client.filter, ssl.SSLError, "BAD_RECORD_MAC")


def test_refused_write_sends_the_alert_for_a_bad_record(
    tls_client: TLSClient, sock: Scripted
) -> None:
    """A caller may write its answer before it drains."""
    tls_client.sslobject.write(b"data")
    first = tls_client.outgoing.read()
    tls_client.sslobject.write(b"corrupt")
    second = bytearray(tls_client.outgoing.read())
    second[-1] ^= 1
    assert tls_client.tls.receive(first + second) == b"data"
    assert iob_write(sock, batch_of(b"an answer"), tls_client.filter) == IOB_ERROR
    tls_client.incoming.write(bytes(sock.taken))
    with pytest.raises(ssl.SSLError, match="ALERT_BAD_RECORD_MAC"):
        tls_client.sslobject.read(100)
