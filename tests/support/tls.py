"""TLS in tests: contexts, and a client in memory."""

from __future__ import annotations

import ssl
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from iobatch.filters import TLS, Filter
from tests.support.fakes import Scripted
from tests.support.filters import step_until_done

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    import trustme

TLS_VERSIONS = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)
RECORD_SIZE = 16 * 1024  # the most plain text in a TLS record (RFC 8446, section 5.1)


def tls_contexts(
    authority: trustme.CA, version: ssl.TLSVersion | None = None
) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return the contexts of a server and its client, which use this version of TLS or any."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.issue_cert("localhost").configure_cert(server)
    authority.configure_trust(client)
    if version is not None:
        server.minimum_version = server.maximum_version = version
    return server, client


class TLSClient:
    """A TLS client without a socket, and the filter of the server that it talks to.

    The client's SSLObject and BIOs are `sslobject`, `incoming` and `outgoing`; the server's
    SSLObject is `server`, with its transform `tls` in `filter`.
    """

    def __init__(
        self,
        authority: trustme.CA,
        version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
        **options: Any,
    ) -> None:
        server_context, client_context = tls_contexts(authority, version)
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.sslobject = client_context.wrap_bio(
            self.incoming, self.outgoing, server_hostname="localhost"
        )
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.server = server_context.wrap_bio(incoming, outgoing, server_side=True)
        self.tls = TLS(self.server, incoming, outgoing)
        self.filter = Filter(self.tls, **options)

    def shake_hands(self) -> None:
        with Scripted() as sock:
            for _ in range(3):
                with suppress(ssl.SSLWantReadError):
                    self.sslobject.do_handshake()
                if message := self.outgoing.read():
                    assert self.tls.receive(message) == b""
                step_until_done(sock, lambda: self.filter.drain(sock), self.filter)
                self.incoming.write(bytes(sock.taken))
                sock.taken.clear()

    def read(self, raw: bytes = b"") -> bytes:
        """Decrypt up to close_notify, which must be last."""
        self.incoming.write(raw)
        plain = bytearray()
        with suppress(ssl.SSLZeroReturnError):  # raised if both sides have sent close_notify
            while piece := self.sslobject.read(RECORD_SIZE):
                plain += piece
        assert not self.incoming.pending, "bytes follow close_notify"
        return bytes(plain)


class MemoryClient:
    """A client that decides which bytes of TLS go into each send."""

    def __init__(
        self, sock: socket.socket, context: ssl.SSLContext, hostname: str = "127.0.0.1"
    ) -> None:
        self.sock = sock
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname=hostname)

    def drive(self, step: Callable[[], Any], size: int) -> Any:
        """Call `step` until TLS needs no more input; send its output in pieces of `size` bytes."""
        while True:
            try:
                result, done = step(), True
            except ssl.SSLWantReadError:
                result, done = None, False
            records = self.outgoing.read()
            for i in range(0, len(records), size):
                self.sock.sendall(records[i : i + size])
            if done:
                return result
            received = self.sock.recv(1 << 16)
            assert received, "end of stream"
            self.incoming.write(received)

    def read_all(self) -> bytes:
        """Read up to the server's close_notify."""
        received = bytearray()
        with suppress(ssl.SSLZeroReturnError):  # raised if both sides have sent close_notify
            while piece := self.drive(lambda: self.tls.read(1 << 14), 1 << 16):
                received += piece
        return bytes(received)

    def has_received_close_notify(self) -> bool:
        """Discard the plain bytes that have arrived; return whether close_notify follows them."""
        try:
            while self.tls.read(1 << 14):
                pass
        except ssl.SSLWantReadError:
            return False
        return True
