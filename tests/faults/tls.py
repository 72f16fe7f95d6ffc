"""The client of a TLS connection, which decrypts what a Delivery reads."""

from __future__ import annotations

import functools
import ssl
from contextlib import suppress
from typing import TYPE_CHECKING

import trustme

from iobatch.filters import TLS, Filter
from tests.support.tls import RECORD_SIZE, tls_contexts

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable


@functools.cache
def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return the contexts of a server and its client."""
    return tls_contexts(trustme.CA())


class TLSClient:
    """A TLS client in memory.

    Attributes:
        ended: whether close_notify has arrived.

    """

    def __init__(self) -> None:
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = contexts()[1].wrap_bio(self.incoming, self.outgoing, server_hostname="localhost")
        self.ended = False

    def decrypt(self, raw: bytes) -> bytes:
        """Return the plain text of the complete records that have arrived."""
        self.incoming.write(raw)
        plain = bytearray()
        with suppress(ssl.SSLWantReadError):
            while piece := self.tls.read(RECORD_SIZE):
                plain += piece
            self.ended = True
        return bytes(plain)

    def connect(self, peer: socket.socket, sock: socket.socket) -> ssl.SSLSocket:
        """Do the handshake with the server, and return its socket in the place of `sock`."""
        conn = contexts()[0].wrap_socket(sock, server_side=True, do_handshake_on_connect=False)

        def answer(received: bytes) -> bytes:
            peer.send(received)
            with suppress(ssl.SSLWantReadError):
                conn.do_handshake()
            return peer.recv(1 << 20)

        self._shake_hands(answer)
        return conn

    def connect_filter(self, peer: socket.socket, sock: socket.socket) -> Filter:
        """Do the handshake with the server, and return its filter."""
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        server = contexts()[0].wrap_bio(incoming, outgoing, server_side=True)
        tls = TLS(server, incoming, outgoing)
        conn = Filter(tls)

        def answer(received: bytes) -> bytes:
            tls.receive(received)
            while conn.drain(sock) > 0:
                pass
            return peer.recv(1 << 20)

        self._shake_hands(answer)
        return conn

    def _shake_hands(self, answer: Callable[[bytes], bytes]) -> None:
        """Send a server each message of the client, up to the tickets after the handshake."""
        while True:
            with suppress(ssl.SSLWantReadError):
                self.tls.do_handshake()
            if not self.outgoing.pending:
                return
            self.incoming.write(answer(self.outgoing.read()))
