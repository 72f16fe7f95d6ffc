"""Responses: their status lines, header fields and bodies. No sockets, no file system."""

from __future__ import annotations

from email.utils import formatdate
from functools import cache, lru_cache
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import quote_from_bytes

from attrs import define, field

from iobatch.httpd.codings import AVAILABLE, accepts_identity, choose
from iobatch.httpd.conditions import precondition, range_applies
from iobatch.httpd.pages import error_page
from iobatch.httpd.ranges import content_range, multipart, spans
from iobatch.httpd.requestline import METHODS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from iobatch.httpd.files import ServedFile
    from iobatch.httpd.ranges import Span
    from iobatch.httpd.requests import Request

# The head of the response to OPTIONS, without what head_end adds. It has no body (RFC 9110 15.3.5).
OPTIONS = f"HTTP/1.1 204 No Content\r\nAllow: {b', '.join(sorted(METHODS)).decode()}\r\n".encode()
# For caches: the next response may differ.
_NOT_KEPT = b"Cache-Control: no-store\r\n"

# Of a response that has a file. Caches keep it, and validate it before each use. Without the field
# they would estimate its freshness from the file's age (RFC 9111 4.2.2).
NO_CACHE = b"Cache-Control: no-cache\r\n"


@define(eq=False)
class Reply:
    """A response with parts of a file, or without a file."""

    # Without what head_end adds.
    head: bytes
    # The bytes before each part, and the part.
    parts: list[tuple[bytes, Span]] = field(factory=list[tuple[bytes, "Span"]])
    # The bytes after the last part, or the whole body.
    body_end: bytes = b""


def negotiate(
    headers: Mapping[bytes, bytes], version: str, file: ServedFile
) -> tuple[ServedFile, str]:
    """Choose the representation of a file: itself, a sibling, or a coding made on the fly.

    Args:
        headers: the request's.
        version: the request's.
        file: the requested file.

    Returns:
        The file to send, and the content coding to apply to it; "": none.

    """
    siblings = file.siblings
    # Siblings are preferred: they cost nothing, and support ranges.
    available = tuple(siblings)
    if file.compressible and version == "1.1":  # HTTP/1.0 has no chunked coding
        available += tuple(each for each in AVAILABLE if each not in siblings)
    coding = choose(headers.get(b"accept-encoding", b""), available)
    if coding in siblings:
        return siblings[coding], ""
    return file, coding


def file_head(file: ServedFile, coding: str) -> bytes:
    """Return the head of a response with a whole file, and keep it with the file.

    It lacks what head_end adds.

    Args:
        file: the file to send.
        coding: the content coding that is applied on the fly; "": none.

    """
    found = file.status == HTTPStatus.OK
    phrase = HTTPStatus(file.status).phrase
    head = f"HTTP/1.1 {file.status} {phrase}\r\nContent-Type: {file.content_type}\r\n"
    if coding:
        head += f"Content-Encoding: {coding}\r\nTransfer-Encoding: chunked\r\n"
    else:
        if file.coding:
            head += f"Content-Encoding: {file.coding}\r\n"
        head += f"Content-Length: {file.size}\r\n"
        if found:
            head += "Accept-Ranges: bytes\r\n"
    file.heads[coding] = head.encode() + (_validators(file, coding) if found else _NOT_KEPT)
    return file.heads[coding]


def conditional(request: Request, file: ServedFile, coding: str) -> Reply | None:
    """Return the response to a request that `is_conditional`; None: the whole file.

    Args:
        request: a GET or HEAD.
        file: as for file_head.
        coding: as for file_head.

    Source: RFC 9110, section 13.2.
    """
    headers = request.headers
    if file.status != HTTPStatus.OK:  # RFC 9110 13.2.1
        return None
    if (
        coding
        and b"range" in headers
        and request.method == b"GET"
        and accepts_identity(headers.get(b"accept-encoding", b""))
        and (reply := conditional(request, file, ""))
    ):
        return reply  # a part of the identity form, so that a download can be resumed
    tag = etag(file, coding).encode()
    status = precondition(headers, tag, file.modified)
    if status == HTTPStatus.PRECONDITION_FAILED:
        head, body = error(status)
        return Reply(head, body_end=body)
    if status:
        return Reply(b"HTTP/1.1 304 Not Modified\r\n" + _validators(file, coding))
    if (
        b"range" not in headers
        or request.method != b"GET"  # RFC 9110 14.2
        or coding  # the length, and so the ranges, of a body made on the fly are unknown
        or not range_applies(headers, tag, file.modified)
        or (found := spans(headers[b"range"], file.size)) is None
    ):
        return None
    if not found:
        head, body = error(416)
        return Reply(head + b"Content-Range: bytes */%d\r\n" % file.size, body_end=body)
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
    head += _validators(file, coding)
    return Reply(head, list(zip(leads, found, strict=True)), end)


def etag(file: ServedFile, coding: str) -> str:
    """Return the entity tag of a file in a content coding.

    A coding made on the fly makes it weak: another version of the compressor makes other bytes.
    """
    tag = "-".join(filter(None, (file.tag, coding or file.coding)))
    return f'W/"{tag}"' if coding or file.weak else f'"{tag}"'


def _validators(file: ServedFile, coding: str) -> bytes:
    """Return the header fields that a 304 response repeats."""
    lines = f"ETag: {etag(file, coding)}\r\n{NO_CACHE.decode()}"
    if file.vary:
        lines += f"Vary: {file.vary}\r\n"
    if file.modified is not None:
        lines += f"Last-Modified: {formatdate(file.modified, usegmt=True)}\r\n"
    return lines.encode()


@lru_cache(maxsize=8)
def head_end(second: int, version: str, keep_alive: bool) -> bytes:  # noqa: FBT001  # quicker
    """Return the last fields of every head: those that don't depend on the representation.

    Args:
        second: the time, in whole seconds since 1970: so the result is made once a second.
        version: the request's.
        keep_alive: the connection stays open after this response.

    """
    date = f"Date: {formatdate(second, usegmt=True)}\r\n"
    if not keep_alive:
        date += "Connection: close\r\n"
    elif version == "1.0":
        date += "Connection: keep-alive\r\n"
    return f"{date}\r\n".encode()


@cache
def error(status: int) -> tuple[bytes, bytes]:
    """Return the head, without what head_end adds, and the body of a response with no file."""
    phrase = HTTPStatus(status).phrase
    kind, text = "plain", f"{status} {phrase}\n"
    if status in {HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND}:  # people follow a link to these
        kind, text = "html", error_page(status, phrase)
    body = text.encode()
    head = (
        f"HTTP/1.1 {status} {phrase}\r\n"
        f"Content-Type: text/{kind}; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\n"
    )
    if status == HTTPStatus.UNAUTHORIZED:
        head += 'WWW-Authenticate: Basic realm="files", charset="UTF-8"\r\n'
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        head += f"Allow: {b', '.join(sorted(METHODS)).decode()}\r\n"
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        head += "Retry-After: 5\r\n"  # seconds
    return head.encode() + _NOT_KEPT, body


def redirect(names: Sequence[bytes], query: bytes) -> tuple[bytes, bytes]:
    """Return the head and body of the response that redirects to a directory's own path.

    Args:
        names: the path's decoded names. No name is empty: a Location that began with two slashes
            would name a host.
        query: the request's query with its question mark, or b"".

    """
    head, body = error(301)
    path = quote_from_bytes(b"/".join((b"", *names, b""))).encode()
    return head + b"Location: " + path + query + b"\r\n", body
