"""TLS records: any bytes, and those of a client with edits, whole and in pieces."""

from __future__ import annotations

import ssl
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import trustme

from iobatch import IOB_AGAIN, IOB_ERROR, iob_write
from iobatch.filters import TLS, Filter
from tests.fuzz.pieces import pieces_of
from tests.support.batches import batch_of
from tests.support.tls import TLS_VERSIONS, tls_contexts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_PLAIN = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


class Outcome(NamedTuple):
    """What a server receives."""

    plain: bytes
    error: type[ssl.SSLError]
    # None: a random number of the handshake may have a part in it.
    reason: str | None
    # An alert, or nothing; None: other messages, which have random numbers.
    sent: bytes | None


def tls(data: bytes) -> None:
    """Assert that records give a beginning of what the client has sent, and one error that stays.

    The first byte has the version of TLS, what the server receives last (0: the input's other
    bytes; 1, 2, 3: the client's first message, its second one, or data and close_notify), and
    whether that is cut at random or into bytes. Each three other bytes are an edit of it: what to
    do, where, and a byte.
    """
    first, rest = (data[0], data[1:]) if data else (0, data)
    version, kind, cut = first & 1, first >> 1 & 3, first >> 3 & 1
    whole = _outcome(version, kind, rest, lambda message: [message])
    assert (_PLAIN if kind == 3 else b"").startswith(whole.plain)
    if kind == 3 and not rest:
        assert whole.plain == _PLAIN
        assert whole.error is ssl.SSLZeroReturnError
    assert _outcome(version, kind, rest, lambda message: pieces_of(message)[cut]) == whole


def _outcome(
    version: int, kind: int, rest: bytes, cut: Callable[[bytes], Iterable[bytes]]
) -> Outcome:
    """Run a connection, and return what the server makes of the pieces of the last message."""
    server_context, client_context = contexts()[version]
    server = _Server(server_context)
    if kind == 0:
        message = rest
    elif kind == 1:
        message = _edited(_client_hello(version), rest, resize=True)
    else:
        client = _Client(client_context)
        for _ in range(kind - 1):
            assert server.receive(client.shake_hands()) == b""
            client.incoming.write(server.take_sent())
        # Encrypted bytes are random: moved to the place of a length they would be another one in
        # each connection.
        message = _edited(client.shake_hands() or client.say_all(), rest, resize=False)
    outcome = server.receive_all(cut(message))
    return outcome if kind < 2 else outcome._replace(reason=None, sent=None)


def _edited(message: bytes, edits: bytes, *, resize: bool) -> bytes:
    edited = bytearray(message)
    for what, where, byte in zip(*[iter(edits)] * 3, strict=False):
        position = (what // 4 * 256 + where) % (len(edited) or 1)
        if what % 4 == 3:
            del edited[position:]
        elif what % 4 == 2 and resize:
            edited.insert(position, byte)
        elif what % 4 == 1 and resize:
            del edited[position : position + 1]
        elif edited:
            edited[position] ^= byte
    return bytes(edited)


class _Server:
    """A server's TLS and its filter, in memory."""

    def __init__(self, context: ssl.SSLContext) -> None:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        sslobject = context.wrap_bio(incoming, outgoing, server_side=True)
        self._tls = TLS(sslobject, incoming, outgoing)
        self._filter = Filter(self._tls, self._send)
        self._sent = bytearray()

    def _send(self, sock: None, view: memoryview) -> int:
        self._sent += view
        return len(view)

    def take_sent(self) -> bytes:
        sent = bytes(self._sent)
        self._sent.clear()
        return sent

    def receive(self, data: bytes) -> bytes:
        try:
            return self._tls.receive(data)
        finally:
            while self._filter.drain(None) > 0:
                pass

    def receive_all(self, pieces: Iterable[bytes]) -> Outcome:
        """Receive pieces and the end of stream; the error must stay, and allow no wrong write."""
        plain = bytearray()
        for piece in [*filter(None, pieces), b"", b"", b"more"]:
            was_ended = self._tls.ended
            try:
                plain += self.receive(piece)
            except ssl.SSLError as exc:
                error, reason = type(exc), exc.reason
                break
            assert not was_ended
        assert self._tls.ended
        sent = self.take_sent()
        alert = sent if sent[:1] in {b"", b"\x15"} else None
        assert self._repeat() == (error, reason)
        code = iob_write(None, batch_of(b"answer"), self._filter)
        if error is ssl.SSLZeroReturnError:
            assert code in {IOB_AGAIN, IOB_ERROR, len(b"answer")}
        else:
            assert code == IOB_ERROR
        return Outcome(bytes(plain), error, reason, alert)

    def _repeat(self) -> tuple[type[ssl.SSLError], str | None]:
        try:
            data = self._tls.receive(b"more")
        except ssl.SSLError as exc:
            return type(exc), exc.reason
        raise AssertionError(f"data after the end: {data!r}")


class _Client:
    """A client's TLS in memory."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._sslobject = context.wrap_bio(
            self.incoming, self._outgoing, server_hostname="localhost"
        )

    def shake_hands(self) -> bytes:
        """Return the next message of the handshake; b"": it is done."""
        with suppress(ssl.SSLWantReadError):
            self._sslobject.do_handshake()
        return self._outgoing.read()

    def say_all(self) -> bytes:
        """Return two records of data, and close_notify."""
        self._sslobject.write(_PLAIN[:10])
        self._sslobject.write(_PLAIN[10:])
        with suppress(ssl.SSLWantReadError):
            self._sslobject.unwrap()
        return self._outgoing.read()


@cache
def contexts() -> list[tuple[ssl.SSLContext, ssl.SSLContext]]:
    """Return the contexts of a server and of its client, for each version of TLS."""
    authority = trustme.CA()
    contexts = [tls_contexts(authority, version) for version in TLS_VERSIONS]
    for _, client in contexts:
        client.check_hostname = False
        client.verify_mode = ssl.CERT_NONE  # half of a handshake's time
    return contexts


@cache
def _client_hello(version: int) -> bytes:
    """Return one message for all servers, so that its random numbers are the same."""
    _, context = contexts()[version]
    return _Client(context).shake_hands()
