"""What names a client: Host, Forwarded, X-Forwarded-For, Authorization, and the log's lines."""

from __future__ import annotations

import re
import socket
from ipaddress import IPv6Address, ip_address

from iobatch.httpd.accesslog import MAX_FIELD, MAX_WRITE, AccessLog, ConnectionLog
from iobatch.httpd.authentication import parse_basic
from iobatch.httpd.proxies import TrustedProxies, parse_proxy
from iobatch.httpd.requests import RequestParser
from iobatch.httpd.targets import is_host

_PROXIES = TrustedProxies([parse_proxy(each) for each in ("10.0.0.0/8", "2001:db8::1")])
_PEER = b"10.0.0.1"
_CLIENT = b"192.0.2.1"
_NAME = re.compile(rb"unknown|_[\w.-]{1,63}", re.IGNORECASE)
_PLAIN_HOST = re.compile(rb"(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f][0-9A-Fa-f])*")
_FUTURE_HOST = re.compile(rb"[vV][0-9A-Fa-f]+\.[A-Za-z0-9._~!$&'()*+,;=:-]+")
_DIGITS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_QUOTED = rb'"((?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\x[0-9a-f]{2})*)"'
LINE = re.compile(
    rb"([\x21\x23-\x5b\x5d-\x7e]+) - ((?:[\x21\x23-\x5b\x5d-\x7e]|\\x[0-9a-f]{2})+) "
    rb"\[\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d \+0000\] %s (\d{3}) (-|[1-9]\d*) %s %s\n"
    % (_QUOTED, _QUOTED, _QUOTED)
)


def hosts(data: bytes) -> None:
    """Assert that a value is a host, with or without a port, exactly where RFC 3986 3.2 says so."""
    host, colon, port = data.rpartition(b":")
    if not colon or data.endswith(b"]"):
        host, port = data, b""
    if host.startswith(b"[") and host.endswith(b"]"):
        valid = bool(_FUTURE_HOST.fullmatch(host[1:-1])) or _is_ipv6(host[1:-1])
    else:
        valid = bool(_PLAIN_HOST.fullmatch(host))
    assert is_host(data) is (valid and re.fullmatch(rb"[0-9]*", port) is not None)


def _is_ipv6(text: bytes) -> bool:
    try:
        socket.inet_pton(socket.AF_INET6, text.decode("latin-1"))
    except (OSError, ValueError):
        return False
    return True


def forwarded(data: bytes) -> None:
    """Assert that what a client has sent can't change what a proxy adds to it about its client.

    The result is an address in its canonical form, or a name that RFC 7239 6 allows.
    """
    for name, own in ((b"x-forwarded-for", b"%s"), (b"forwarded", b"for=%s")):
        client = _PROXIES.client_of({name: data}, _PEER)
        assert client == _PEER or _NAME.fullmatch(client) or _is_canonical(client)
        # A client that is known stays the same in each form in which a proxy may pass it on.
        written = b'"[%s]"' % client if b":" in client else client
        again = own % (written if name == b"forwarded" else client)
        assert _PROXIES.client_of({name: again}, _PEER) == client
        for end in (b"", b", " + own % b"10.1.1.1"):
            forged = data + b", " + own % _CLIENT + end
            assert _PROXIES.client_of({name: forged}, _PEER) == _CLIENT


def _is_canonical(client: bytes) -> bool:
    address = ip_address(client.decode("ascii"))
    is_mapped = isinstance(address, IPv6Address) and address.ipv4_mapped is not None
    return str(address).encode() == client and not is_mapped


def authorization(data: bytes) -> None:
    """Assert that credentials are the bytes that the token encodes, bit by bit, with a colon."""
    found = parse_basic(data)
    scheme, _, token = data.partition(b" ")
    token = token.lstrip(b" ")
    expected = _slow_base64(token) if scheme.lower() == b"basic" else None
    if expected is not None and b":" in expected:
        assert found == expected
    if found is not None:  # superfluous padding is ignored
        digits = token.rstrip(b"=")
        assert b":" in found
        assert found == _slow_base64(digits + b"=" * (-len(digits) % 4))


def _slow_base64(token: bytes) -> bytes | None:
    """Decode Base64 bit by bit (RFC 4648 4); None: the token is malformed."""
    digits = token.rstrip(b"=")
    if len(token) % 4 or len(token) - len(digits) > 2 or not set(digits) <= set(_DIGITS):
        return None
    number = 0
    for digit in digits:
        number = number << 6 | _DIGITS.index(digit)
    bits = 6 * len(digits)
    return (number >> bits % 8).to_bytes(bits // 8, "big")


class Lines(list[bytes]):
    """Stands for the output of a log: it collects what is written."""

    def write(self, piece: bytes) -> None:
        assert len(piece) <= MAX_WRITE
        self.append(piece)

    def resume(self) -> None:
        """Do nothing: everything is written."""


def log(data: bytes) -> None:
    """Assert that a request is one line of printable ASCII that shows the request's own fields."""
    lines = Lines()
    log = AccessLog(lines, combined=True, authenticated=True, proxies=_PROXIES)  # type: ignore[arg-type]
    connection = ConnectionLog(log, _PEER)
    parser = RequestParser()
    parser.feed(data)
    for request in parser.requests:
        connection.add(request, b"HTTP/1.1 200 OK\r\n\r\n", len(data))
    connection.write_sent(0)
    log.flush()
    written = b"".join(lines).splitlines(keepends=True)
    for request, line in zip(parser.requests, written, strict=True):
        match = LINE.fullmatch(line)
        assert match, line
        client, user, request_line, status, size, referrer, agent = match.groups()
        assert client == _PROXIES.client_of(request.headers, _PEER)
        assert (status, size) == (b"200", b"%d" % len(data) if data else b"-")
        credentials = parse_basic(request.headers.get(b"authorization", b""))
        _check_field(user, b"" if request.refused else (credentials or b"").partition(b":")[0])
        _check_field(referrer, request.headers.get(b"referer", b""))
        _check_field(agent, request.headers.get(b"user-agent", b""))
        if request.target:
            request_line, _, version = request_line.rpartition(b" HTTP/")
            assert version.decode() == request.version
        _check_field(request_line, b"%s %s" % (request.method, request.target))


def _check_field(shown: bytes, value: bytes) -> None:
    """Assert that a field shows a value, or the beginning of one that is too long."""
    original = re.sub(rb"\\x(..)", lambda match: bytes([int(match[1], 16)]), shown)
    if not value.strip(b" "):
        assert original in {b"-", value}
    elif len(shown) > MAX_FIELD - 4:
        assert len(shown) <= MAX_FIELD
        assert value.startswith(original)
    else:
        assert original == value
