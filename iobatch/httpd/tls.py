"""TLS: the server's certificate, and the state of each connection."""

from __future__ import annotations

import ssl
import subprocess
from ipaddress import ip_address
from tempfile import TemporaryDirectory
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
    context.set_alpn_protocols(["http/1.1"])
    return context


def self_signed_context(names: Iterable[str]) -> ssl.SSLContext:
    """Return a server's TLS context with a new self-signed certificate, for trying TLS.

    Args:
        names: the host names and addresses that the certificate is for.

    Raises:
        OSError: the openssl program is missing or failed.

    """
    subjects = ",".join(f"{'IP' if _is_address(name) else 'DNS'}:{name}" for name in sorted(names))
    with TemporaryDirectory() as folder:
        certificate, key = f"{folder}/cert.pem", f"{folder}/key.pem"
        command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30"
        options = ["-subj", "/CN=iobatch.httpd", "-addext", f"subjectAltName={subjects}"]
        result = subprocess.run(  # noqa: S603  # the arguments are ours, except two paths
            [*command.split(), *options, "-out", certificate, "-keyout", key],
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode:
            reason = result.stderr.strip().rpartition("\n")[2]
            raise OSError(0, f"openssl failed: {reason}")
        return tls_context(certificate, key)


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


@define(eq=False)
class ConnectionTLS:
    """The TLS of one connection."""

    # Encrypts what is sent.
    filter: Filter
    _tls: TLS

    @property
    def ended(self) -> bool:
        """Whether the client sends nothing more, for example after its close_notify."""
        return self._tls.ended

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
    return ConnectionTLS(Filter(tls, throttle, high_water=HIGH_WATER), tls)
