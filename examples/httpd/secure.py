"""TLS: what the server shows, and what each connection has of its own."""

from __future__ import annotations

import ssl
import subprocess
from contextlib import suppress
from ipaddress import ip_address
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from attrs import define, field

from iobatch.filters import TLS, Filter
from outlet import HIGH_WATER, Meter

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable


def tls_context(certificate: str, key: str) -> ssl.SSLContext:
    """Return what TLS needs to know.

    Args:
        certificate: a PEM file with the chain of certificates, the server's own first.
        key: a PEM file with its private key.

    Raises:
        OSError: one of the files can't be read, or they don't belong together.

    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # A key with a passphrase is refused: nobody may be there to be asked for it.
    try:
        context.load_cert_chain(certificate, key, password=lambda: b"")
    except ssl.SSLError as exc:
        raise OSError(0, "no certificate and its private key, or it has a passphrase") from exc
    context.set_alpn_protocols(["http/1.1"])
    return context


def self_signed(names: Iterable[str]) -> ssl.SSLContext:
    """Return a context with a new certificate that nobody has signed, to try TLS without one.

    Args:
        names: the hosts and addresses that it is for.

    Raises:
        OSError: the openssl program is missing or failed.

    """
    subjects = ",".join(f"{'IP' if _is_address(name) else 'DNS'}:{name}" for name in sorted(names))
    with TemporaryDirectory() as folder:
        certificate, key = f"{folder}/cert.pem", f"{folder}/key.pem"
        command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30"
        options = ["-subj", "/CN=httpd", "-addext", f"subjectAltName={subjects}"]
        result = subprocess.run(  # noqa: S603
            [*command.split(), *options, "-out", certificate, "-keyout", key],
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode:
            raise OSError(0, f"openssl failed: {result.stderr.strip().splitlines()[-1:]}")
        return tls_context(certificate, key)


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


@define(eq=False)
class Secure:
    """One connection's TLS."""

    # What is to be sent goes through it.
    filter: Filter
    _tls: TLS
    _sslobject: ssl.SSLObject
    # The client has said that nothing more comes.
    ended: bool = field(init=False, default=False)

    def receive(self, data: bytes) -> bytes:
        """Return what the client wrote, as far as it is there.

        Raises:
            ssl.SSLError: the end, or what is wrong.

        """
        data = self._tls.receive(data)
        if data:
            # Maybe the end came right behind it: then nothing else is going to tell.
            with suppress(ssl.SSLError):
                self.ended = not self._sslobject.read(1)
        return data

    def end(self, sock: socket.socket) -> None:
        """Say that nothing more comes, or what was wrong, if the socket takes that at once."""
        self.filter.finish(sock)


def secure(context: ssl.SSLContext, meter: Meter | None) -> Secure:
    """Return a new connection's TLS, and maybe let it go through a meter."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    sslobject = context.wrap_bio(incoming, outgoing, server_side=True)
    tls = TLS(sslobject, incoming, outgoing)
    return Secure(Filter(tls, meter, high_water=HIGH_WATER), tls, sslobject)
