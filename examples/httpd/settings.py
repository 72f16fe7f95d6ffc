"""What the command line may change."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import define

if TYPE_CHECKING:
    from ssl import SSLContext


@define(frozen=True)
class Settings:
    """How connections are served."""

    # Seconds in which a client must send a whole request, or take some more of a response.
    timeout: float = 60.0
    # Of TLS; None: plain HTTP.
    tls: SSLContext | None = None
