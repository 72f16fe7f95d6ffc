"""What is answered to a request: status lines, headers and bodies. No sockets, no file system."""

from __future__ import annotations

import errno
from email.utils import formatdate
from functools import cache, lru_cache
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import quote_from_bytes

from attrs import define

if TYPE_CHECKING:
    from collections.abc import Sequence

    from files import OpenFile

METHODS = frozenset({b"GET", b"HEAD"})

# The status for an error of the file system, where it isn't 500.
_STATUS_OF_ERRNO = {
    errno.ENOENT: 404,
    errno.ENOTDIR: 404,
    errno.ENAMETOOLONG: 404,
    errno.ELOOP: 404,
    errno.EACCES: 403,
    errno.EPERM: 403,
    errno.EINVAL: 400,
    errno.EMFILE: 503,
    errno.ENFILE: 503,
}


@define(eq=False)
class Request:
    """The head of a request."""

    method: bytes
    target: bytes
    version: str
    # By their names in lower case; values of one name are joined by a comma (RFC 9110 5.3).
    headers: dict[bytes, bytes]
    # The client can send more requests on the connection, and has not asked for its end.
    keep_alive: bool
    # Why it is refused whatever its target is; 0: it isn't.
    refused: int = 0


def refusal(request: Request) -> int:
    """Return the status that refuses a request for what its head says, or 0."""
    headers = request.headers
    if request.version == "1.1":
        # RFC 9112 3.2. A comma: there were two.
        host = headers.get(b"host")
        if host is None or b"," in host:
            return 400
    elif request.version != "1.0":
        return 505
    # RFC 9112 6.3: without "chunked" at its end nobody can tell where such a body ends.
    if b"transfer-encoding" in headers and headers[b"transfer-encoding"].lower() != b"chunked":
        return 400
    return 0 if request.method in METHODS else 405


def has_body(request: Request) -> bool:
    """Tell whether content follows the head of a request (RFC 9112 6)."""
    headers = request.headers
    if b"content-length" in headers:
        return int(headers[b"content-length"]) > 0  # The parser has seen that it is a number.
    return b"transfer-encoding" in headers


def file_head(file: OpenFile, coding: str, now: float) -> bytes:
    """Return the head of a response with a file, up to what head_end adds, and keep it there.

    Args:
        file: what is sent.
        coding: the content coding that it is sent in; "": as it is.
        now: seconds since 1970. Nothing was modified in the future (RFC 9110 8.8.2.1).

    """
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {file.content_type}\r\n"
    if coding:
        head += f"Content-Encoding: {coding}\r\nTransfer-Encoding: chunked\r\n"
    else:
        head += f"Content-Length: {file.size}\r\n"
    if file.compressible:
        head += "Vary: Accept-Encoding\r\n"
    if file.modified is not None:
        head += f"Last-Modified: {formatdate(min(max(file.modified, 0), now), usegmt=True)}\r\n"
    file.heads[coding] = head.encode()
    return file.heads[coding]


@lru_cache(maxsize=8)
def head_end(second: int, version: str, keep_alive: bool) -> bytes:  # noqa: FBT001  # quicker
    """Return the last headers of any response: those that don't depend on what it carries.

    Args:
        second: the time, in whole seconds since 1970: so this is made once a second.
        version: the request's.
        keep_alive: the connection stays open behind this response.

    """
    date = f"Date: {formatdate(second, usegmt=True)}\r\n"
    if not keep_alive:
        date += "Connection: close\r\n"
    elif version == "1.0":
        date += "Connection: keep-alive\r\n"
    return f"{date}\r\n".encode()


@cache
def error(status: int) -> tuple[bytes, bytes]:
    """Return the head, up to what head_end adds, and the body of a response without a file."""
    phrase = HTTPStatus(status).phrase
    body = f"{status} {phrase}\n".encode()
    head = (
        f"HTTP/1.1 {status} {phrase}\r\n"
        "Content-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\n"
    )
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        head += f"Allow: {b', '.join(sorted(METHODS)).decode()}\r\n"
    return head.encode(), body


def redirect(names: Sequence[bytes], query: bytes) -> tuple[bytes, bytes]:
    """Return head and body of the response that sends a client to a directory's own address.

    Args:
        names: the path's decoded names. None of them is empty, so the new address can't begin
            with two slashes, which would make a host of the first name.
        query: the address's query with its question mark, or nothing.

    """
    head, body = error(301)
    path = quote_from_bytes(b"/".join((b"", *names, b""))).encode()
    return head + b"Location: " + path + query + b"\r\n", body


def status_of(failure: OSError) -> int:
    """Return the status that tells a client why its file could not be opened."""
    return _STATUS_OF_ERRNO.get(failure.errno or 0, 500)
