"""TLS: the server's certificate, and the state of each connection."""

from __future__ import annotations

import os
import ssl
import subprocess
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import define

from iobatch.filters import TLS, Filter
from iobatch.httpd.sink import HIGH_WATER

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable

    from iobatch.httpd.throttle import Throttle


def tls_context(certificate: str, key: str) -> ssl.SSLContext:
    """Return a server's TLS context.

    Args:
        certificate: a PEM file with the certificate chain, the server's own certificate first.
        key: a PEM file with its private key.

    Raises:
        OSError: a file can't be read, the key does not belong to the certificate, or it has a
            passphrase.

    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # An empty passphrase makes OpenSSL fail where it would ask on the terminal.
    try:
        context.load_cert_chain(certificate, key, password=lambda: b"")
    except ssl.SSLError as exc:
        raise OSError(0, "not a certificate and its private key without a passphrase") from exc
    except OSError:
        for path in (certificate, key):
            Path(path).open("rb").close()  # its exception names the file, and OpenSSL's does not
        raise
    context.set_alpn_protocols(["http/1.1"])
    return context


def self_signed_context(names: Iterable[str]) -> ssl.SSLContext:
    """Return a server's TLS context with a new self-signed certificate, for trying TLS.

    Args:
        names: the host names and addresses that the certificate is for.

    Raises:
        OSError: the openssl program is missing or failed.

    """
    subjects = ",".join(sorted(map(_subject, names)))
    fd = os.memfd_create("certificate")
    try:
        path = f"/proc/self/fd/{fd}"
        command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30"
        options = ["-subj", "/CN=iobatch.httpd", "-addext", f"subjectAltName={subjects}"]
        result = subprocess.run(  # noqa: S603  # the arguments are ours, except two names
            [*command.split(), *options, "-keyout", path, "-out", path],
            pass_fds=[fd],
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode:
            reason = result.stderr.strip().rpartition("\n")[2]
            raise OSError(0, f"openssl failed: {reason}")
        return tls_context(path, path)
    finally:
        os.close(fd)


def _subject(name: str) -> str:
    """Return a subject's alternative name, as openssl expects it."""
    address, _, _ = name.partition("%")  # an IPv6 zone is known to this machine only (RFC 4007 6)
    try:
        ip_address(address)
    except ValueError:
        return f"DNS:{name}"
    return f"IP:{address}"


@define(eq=False)
class ConnectionTLS:
    """The TLS of one connection."""

    # Encrypts what is sent.
    filter: Filter
    _tls: TLS
    _sslobject: ssl.SSLObject

    @property
    def ended(self) -> bool:
        """Whether the client sends nothing more, for example after its close_notify."""
        return self._tls.ended

    @property
    def is_established(self) -> bool:
        """Whether the handshake is finished."""
        return self._sslobject.version() is not None

    @property
    def is_shaking_hands(self) -> bool:
        """Whether a handshake has begun and is not finished."""
        begun = self.filter.bytessent or self.filter.bytesleft
        return bool(begun) and not self.is_established

    def receive(self, data: bytes) -> bytes:
        """Return the plain bytes of received records; b"" if no record is complete.

        Raises:
            ssl.SSLError: the client has sent close_notify, or something that is not TLS.

        """
        return self._tls.receive(data)

    def end(self, sock: socket.socket) -> None:
        """Send close_notify or an alert, if the socket takes it at once."""
        self.filter.finish(sock)


def new_tls(context: ssl.SSLContext, throttle: Throttle | None) -> ConnectionTLS:
    """Return the TLS of a new connection, whose records go through a throttle if there is one."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    sslobject = context.wrap_bio(incoming, outgoing, server_side=True)
    tls = TLS(sslobject, incoming, outgoing)
    return ConnectionTLS(Filter(tls, throttle, high_water=HIGH_WATER), tls, sslobject)
