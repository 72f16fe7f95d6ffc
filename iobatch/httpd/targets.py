"""Request targets: from the bytes of a request line to the names of a path."""

from __future__ import annotations

import errno
import re
from functools import lru_cache
from urllib.parse import unquote_to_bytes

from iobatch.httpd.errors import os_error

# A host and its port (RFC 3986 3.2.2), without the comma: the parser joins two Host fields by one.
_HOST = re.compile(rb"(\[[\w.~!$&'()*+;=:%-]+\]|[\w.~!$&'()*+;=%-]*)(:[0-9]*)?")


def split_target(target: bytes) -> tuple[bytes, bytes]:
    """Return the path and the query ("?" included) of a request target (RFC 9112 3.2).

    Raises:
        OSError: EINVAL: the target is neither a path nor an absolute http URL.

    """
    if not target.startswith(b"/"):
        scheme, _, rest = target.partition(b"://")
        if scheme.lower() not in {b"http", b"https"}:
            raise os_error(errno.EINVAL)
        # The path may be empty, with or without a query. The host may not (RFC 9110 4.2.1).
        end = min((i for i in (rest.find(b"/"), rest.find(b"?")) if i >= 0), default=len(rest))
        host = rest[:end]
        if not host or host.startswith(b":") or not is_host(host):
            raise os_error(errno.EINVAL)
        target = rest[end:]
        if not target.startswith(b"/"):
            target = b"/" + target
    path, mark, query = target.partition(b"?")
    return path, mark + query


@lru_cache(maxsize=64)
def is_host(value: bytes) -> bool:
    """Return whether a value has the form of a host, with or without a port."""
    return _HOST.fullmatch(value) is not None


def split_path(path: bytes) -> list[bytes]:
    """Return the decoded names of a path. Empty names are left out.

    Raises:
        OSError: EINVAL: no file can have one of the names, or a name is "." or "..". Clients
            resolve those before they send a request (RFC 3986 5.2.4).

    """
    names = [unquote_to_bytes(name) for name in path.split(b"/") if name]
    for name in names:
        if name in {b".", b".."} or b"/" in name or b"\0" in name:
            raise os_error(errno.EINVAL)
    return names
