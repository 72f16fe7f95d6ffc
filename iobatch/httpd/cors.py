"""CORS preflights: requests by which a browser asks whether a script may send another one."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from iobatch.httpd.headerfields import NAME_FORM
from iobatch.httpd.requestline import METHODS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from iobatch.httpd.headerfields import PathFields
    from iobatch.httpd.requests import Request

_NAMES = re.compile(rf"{NAME_FORM}(?:[ \t]*,[ \t]*{NAME_FORM})*".encode())
_METHODS_LINE = b"Access-Control-Allow-Methods: %s\r\n" % b", ".join(sorted(METHODS))


def is_preflight(request: Request, fields: PathFields) -> bool:
    """Return whether a request is a preflight for a path that other origins may use.

    Args:
        request: the request.
        fields: those for its path.

    """
    return (
        request.method == b"OPTIONS"
        and b"origin" in request.headers
        and b"access-control-request-method" in request.headers
        and any(name.startswith("access-control-") for name in fields.names)
    )


def preflight_lines(headers: Mapping[bytes, bytes], fields: PathFields) -> bytes:
    """Return the header fields that the response to a preflight has beside the configured ones.

    Args:
        headers: the request's.
        fields: those for its path.

    """
    lines = b"" if "access-control-allow-methods" in fields.names else _METHODS_LINE
    names = headers.get(b"access-control-request-headers", b"")
    if "access-control-allow-headers" not in fields.names and _NAMES.fullmatch(names):
        lines += b"Access-Control-Allow-Headers: %s\r\n" % names
        lines += b"Vary: Access-Control-Request-Headers\r\n"
    return lines
