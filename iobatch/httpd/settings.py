"""How connections are served, and the limits that protect the server from its clients."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import define

if TYPE_CHECKING:
    from ssl import SSLContext

    from iobatch.httpd.accesslog import AccessLog
    from iobatch.httpd.authentication import Authentication
    from iobatch.httpd.headerfields import HeaderFields


@define(frozen=True)
class Settings:
    """The settings of every connection. Times are in seconds."""

    # A connection is closed when its client neither reads a part of a response nor sends a
    # complete request for this time.
    timeout: float = 60.0
    # From the first byte of a request to the end of its head.
    header_timeout: float = 20.0
    # A connection beyond this number takes the place of the longest idle one. If none is idle it
    # gets 503; with TLS it is closed.
    max_connections: int = 10_000
    # The most bytes per second on a connection; None: no limit.
    rate: int | None = None
    # After the server was asked to stop, the time to finish responses.
    grace: float = 10.0
    # None: plain HTTP.
    tls: SSLContext | None = None
    log: AccessLog | None = None
    # None: responses have only the server's own header fields.
    header_fields: HeaderFields | None = None
    # None: requests need no credentials.
    authentication: Authentication | None = None
