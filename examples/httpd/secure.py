"""TLS: what the server shows, and what each connection has of its own."""

from __future__ import annotations

import ssl

from iobatch.filters import TLS, Filter
from outlet import HIGH_WATER


def tls_context(certificate: str, key: str) -> ssl.SSLContext:
    """Return what TLS needs to know.

    Args:
        certificate: a PEM file with the chain of certificates, the server's own first.
        key: a PEM file with its private key.

    Raises:
        OSError: one of the files can't be read, or they don't belong together (ssl.SSLError).

    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # A key with a passphrase is refused: nobody may be there to be asked for it.
    context.load_cert_chain(certificate, key, password=lambda: b"")
    context.set_alpn_protocols(["http/1.1"])
    return context


def secure(context: ssl.SSLContext) -> tuple[TLS, Filter]:
    """Return a new connection's TLS, and the filter around it."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = TLS(context.wrap_bio(incoming, outgoing, server_side=True), incoming, outgoing)
    return tls, Filter(tls, high_water=HIGH_WATER)
