"""The end of a TLS stream: close_notify, alerts, and an end of stream without either."""

from __future__ import annotations

import ssl
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from iobatch import IOB_DONE, IOB_ERROR, iob_write
from iobatch.filters import TLS, Filter
from tests.support.batches import batch_of, data
from tests.support.filters import (
    BODY,
    assert_refused,
    step_until_done,
    write_and_finish,
    write_while_taken,
)

if TYPE_CHECKING:
    from tests.support.fakes import Scripted
    from tests.support.tls import TLSClient


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


def test_peers_close_notify_is_read_after_its_data_and_ends_writing(
    tls_client: TLSClient, sock: Scripted
) -> None:
    tls_client.sslobject.write(b"last data")
    with pytest.raises(ssl.SSLWantReadError):
        tls_client.sslobject.unwrap()
    assert tls_client.tls.receive(tls_client.outgoing.read()) == b"last data"
    batch = batch_of(b"an answer")
    assert write_while_taken(sock, batch, tls_client.filter) == IOB_DONE
    for _ in range(2):
        with pytest.raises(ssl.SSLZeroReturnError, match="close_notify"):
            tls_client.tls.receive(b"")
    assert_refused(sock, tls_client.filter, ssl.SSLZeroReturnError)


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
