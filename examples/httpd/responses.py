"""What is answered to a request: status lines, headers and bodies. No sockets, no file system."""

from __future__ import annotations

import errno
from email.utils import formatdate
from functools import cache, lru_cache
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import quote_from_bytes

from attrs import define, field

from codings import AVAILABLE, choose
from conditions import precondition, range_applies
from files import is_host
from ranges import content_range, multipart, spans

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from files import OpenFile
    from ranges import Span

METHODS = frozenset({b"GET", b"HEAD", b"OPTIONS"})
# A request that has any of these may be answered by less than the file.
CONDITIONAL = frozenset(
    {
        b"if-match",
        b"if-modified-since",
        b"if-none-match",
        b"if-range",
        b"if-unmodified-since",
        b"range",
    }
)
# RFC 9110 15.3.5: it has no content.
OPTIONS = f"HTTP/1.1 204 No Content\r\nAllow: {b', '.join(sorted(METHODS)).decode()}\r\n".encode()


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
    if request.version not in {"1.1", "1.0"}:
        return 505
    host = headers.get(b"host")  # RFC 9112 3.2. If there are two, a comma is between them.
    if host is None:
        if request.version == "1.1":
            return 400
    elif not is_host(host):
        return 400
    # RFC 9112 6.3: without "chunked" at its end nobody can tell where such a body ends.
    if b"transfer-encoding" in headers and headers[b"transfer-encoding"].lower() != b"chunked":
        return 400
    return 0 if request.method in METHODS else 405


def has_body(request: Request) -> bool:
    """Tell whether content follows the head of a request (RFC 9112 6)."""
    headers = request.headers
    if b"content-length" in headers:
        # The parser has seen that it is a number, but not that int() takes as many digits.
        return headers[b"content-length"].strip(b"0 \t") != b""
    return b"transfer-encoding" in headers


@define(eq=False)
class Reply:
    """A response with some parts of a file, or none."""

    head: bytes  # up to what head_end adds
    # What goes in front of each part, and where it is in the file.
    parts: list[tuple[bytes, Span]] = field(factory=list)
    # What goes behind the last part, or is all there is.
    end: bytes = b""


def negotiate(headers: Mapping[bytes, bytes], version: str, file: OpenFile) -> tuple[OpenFile, str]:
    """Choose between a file as it is, one beside it, and making a coding of it on the fly.

    Args:
        headers: the request's.
        version: the request's.
        file: the one that was asked for.

    Returns:
        The file to be sent, and the coding to be made of it; "": none.

    """
    siblings = file.siblings
    # What is there already costs nothing, and has parts that can be asked for.
    available = tuple(siblings)
    if file.compressible and version == "1.1":  # HTTP/1.0 has no chunks
        available += tuple(each for each in AVAILABLE if each not in siblings)
    coding = choose(headers.get(b"accept-encoding", b""), available)
    if coding in siblings:
        return siblings[coding], ""
    return file, coding


def file_head(file: OpenFile, coding: str, now: float) -> bytes:
    """Return the head of a response with a file, up to what head_end adds, and keep it there.

    Args:
        file: what is sent.
        coding: the content coding that is made of it; "": it is sent as it is.
        now: seconds since 1970. Nothing was modified in the future (RFC 9110 8.8.2.1).

    """
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {file.content_type}\r\n"
    if coding:
        head += f"Content-Encoding: {coding}\r\nTransfer-Encoding: chunked\r\n"
    else:
        if file.coding:
            head += f"Content-Encoding: {file.coding}\r\n"
        head += f"Content-Length: {file.size}\r\nAccept-Ranges: bytes\r\n"
    file.heads[coding] = head.encode() + _validators(file, coding, now)
    return file.heads[coding]


def conditional(request: Request, file: OpenFile, coding: str, now: float) -> Reply | None:
    """Return the response to a request that has a header of CONDITIONAL; None: it is the file.

    Args:
        request: a GET or HEAD.
        file: as for file_head.
        coding: as for file_head.
        now: as for file_head.

    Source: RFC 9110, section 13.2.
    """
    headers = request.headers
    tag = etag(file, coding).encode()
    status = precondition(headers, tag, file.modified)
    if status == HTTPStatus.PRECONDITION_FAILED:
        head, body = error(status)
        return Reply(head, end=body)
    if status:
        return Reply(b"HTTP/1.1 304 Not Modified\r\n" + _validators(file, coding, now))
    if (
        b"range" not in headers
        or request.method != b"GET"  # RFC 9110 14.2
        or coding  # what is made on the fly has no parts
        or not range_applies(headers, tag, file.modified, now)
        or (found := spans(headers[b"range"], file.size)) is None
    ):
        return None
    if not found:
        head, body = error(416)
        return Reply(head + b"Content-Range: bytes */%d\r\n" % file.size, end=body)
    end = b""
    if len(found) == 1:
        about = f"Content-Type: {file.content_type}\r\nContent-Length: {found[0][1]}\r\n".encode()
        about += content_range(found[0], file.size)
        leads = [b""]
    else:
        about, leads, end = multipart(found, file.size, file.content_type)
    head = b"HTTP/1.1 206 Partial Content\r\n" + about
    if file.coding:
        head += f"Content-Encoding: {file.coding}\r\n".encode()
    head += _validators(file, coding, now)
    return Reply(head, list(zip(leads, found, strict=True)), end)


def etag(file: OpenFile, coding: str) -> str:
    """Return the entity tag of a file that is sent in a coding.

    What is made on the fly has a weak one: another version of the compressor makes other bytes.
    """
    tag = "-".join(filter(None, (file.tag, coding or file.coding)))
    return f'W/"{tag}"' if coding or file.weak else f'"{tag}"'


def _validators(file: OpenFile, coding: str, now: float) -> bytes:
    """Return the headers that a response has even if the file itself isn't sent."""
    # Clients keep it, but ask each time whether it is still the same. Otherwise they would guess
    # from its age for how long it will be (RFC 9111 4.2.2).
    lines = f"ETag: {etag(file, coding)}\r\nCache-Control: no-cache\r\n"
    if file.varies:
        lines += "Vary: Accept-Encoding\r\n"
    if file.modified is not None:
        lines += f"Last-Modified: {formatdate(min(max(file.modified, 0), now), usegmt=True)}\r\n"
    return lines.encode()


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
        "Cache-Control: no-store\r\n"  # it may be another one the next time
    )
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        head += f"Allow: {b', '.join(sorted(METHODS)).decode()}\r\n"
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        head += "Retry-After: 5\r\n"  # seconds
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
