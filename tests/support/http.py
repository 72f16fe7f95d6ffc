"""HTTP/1.1 responses, parsed strictly: a truncated response fails the test."""

from __future__ import annotations

from typing import NamedTuple


class Response(NamedTuple):
    """A response, its body decoded from chunked coding."""

    status: int
    # Fields of one name are joined (RFC 9110 5.3).
    headers: dict[str, str]
    body: bytes


def split(raw: bytes, *methods: str) -> list[Response]:
    """Split a server's output into its responses; requests beyond `methods` were GET."""
    found = []
    while raw:
        head, end, raw = raw.partition(b"\r\n\r\n")
        assert end, f"the head is truncated: {head!r}"
        status, *lines = head.decode("latin-1").split("\r\n")
        headers: dict[str, str] = {}
        for line in lines:
            name, value = line.split(": ", 1)
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        method = methods[len(found)] if len(found) < len(methods) else "GET"
        if method == "HEAD" or status.split()[1] in {"204", "304"}:
            body = b""
        elif headers.get("Transfer-Encoding") == "chunked":
            body, raw = take_chunks(raw)
        else:
            size = int(headers["Content-Length"])
            assert len(raw) >= size, "the body is truncated"
            body, raw = raw[:size], raw[size:]
        found.append(Response(int(status.split()[1]), headers, body))
    return found


def take_chunks(raw: bytes) -> tuple[bytes, bytes]:
    """Return the content of a chunked body, and the bytes after the body."""
    content = bytearray()
    while True:
        line, end, raw = raw.partition(b"\r\n")
        assert end, "a chunk's size is truncated"
        size = int(line, 16)
        assert raw[size : size + 2] == b"\r\n", "a chunk is truncated"
        content += raw[:size]
        raw = raw[size + 2 :]
        if not size:
            return bytes(content), raw


def unchunk(raw: bytes) -> bytes:
    """Return the content of a chunked body that nothing follows."""
    content, rest = take_chunks(raw)
    assert not rest, "bytes follow the last chunk"
    return content
