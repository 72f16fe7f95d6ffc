"""Request targets: from the bytes of a request line to the names of a path."""

from __future__ import annotations

import errno
import re
from functools import lru_cache
from ipaddress import IPv6Address
from urllib.parse import unquote_to_bytes

from iobatch.httpd.errors import os_error

# A host and its port (RFC 3986 3.2.2). IPv6 addresses are left to ipaddress, which would accept a
# zone identifier.
_HOST = re.compile(
    rb"(?:\[(?:(?P<ipv6>[0-9A-Fa-f:.]+)|[vV][0-9A-Fa-f]+\.[\w.~!$&'()*+,;=:-]+)\]"
    rb"|(?:[\w.~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*)(?::[0-9]*)?",
)
# A percent sign that no two hexadecimal digits follow (RFC 3986 2.1).
_NOT_ENCODED = re.compile(rb"%(?![0-9A-Fa-f]{2})")


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
    match = _HOST.fullmatch(value)
    if match is None:
        return False
    try:
        return match["ipv6"] is None or bool(IPv6Address(match["ipv6"].decode()))
    except ValueError:
        return False


def split_path(path: bytes) -> list[bytes]:
    """Return the decoded names of a path; the last is empty if the path is a directory's.

    Dot segments are removed (RFC 3986 5.2.4), encoded ones too (6.2.2.3). Slashes in a row count as
    one, as in a path of POSIX, and no name but the last is empty: so ".." removes the name of a
    directory.

    Raises:
        OSError: EINVAL: the encoding is invalid, no file can have one of the names, or the path
            leads above the root.

    """
    if _NOT_ENCODED.search(path):
        raise os_error(errno.EINVAL)
    segments = [unquote_to_bytes(segment) for segment in path.split(b"/")]
    names: list[bytes] = []
    for name in segments:
        if b"/" in name or b"\0" in name or (name == b".." and not names):
            raise os_error(errno.EINVAL)
        if name == b"..":
            names.pop()
        elif name not in {b"", b"."}:
            names.append(name)
    if segments[-1] in {b"", b".", b".."}:
        names.append(b"")
    return names
