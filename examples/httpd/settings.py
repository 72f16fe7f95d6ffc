"""What the command line may change, and the limits that protect the server from its clients."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import define

if TYPE_CHECKING:
    from ssl import SSLContext

    from accesslog import AccessLog


@define(frozen=True)
class Settings:
    """How connections are served. Times are in seconds."""

    # A client must take some more of a response in this time, or send the next request.
    timeout: float = 60.0
    # From the first byte of a request to the end of its head.
    header_timeout: float = 20.0
    # More connections than that are answered by 503, or over TLS not at all.
    max_connections: int = 10_000
    # Bytes per second on a connection; None: as many as it takes.
    rate: int | None = None
    # When the server is told to stop, responses have so long to be finished.
    grace: float = 10.0
    # Of TLS; None: plain HTTP.
    tls: SSLContext | None = None
    log: AccessLog | None = None
