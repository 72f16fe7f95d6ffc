"""Header fields of requests: the host, the length of the body, and the connection."""

from __future__ import annotations

import pytest

from tests.support.http import split
from tests.support.httpd import SMALL, Address, exchange


@pytest.mark.parametrize(
    "host",
    [
        "",
        ":",
        ":80",
        "x",
        "x:",
        "x:80",
        "x:00080",
        "x:99999999999999999999",
        "X.Example.",
        "a-b.example:80",
        "foo-bar_baz.com",
        "_dmarc.x",
        "1.2.3.4",
        "999.1.2.3",
        "2130706433:8000",
        "a..b",
        "%C3%A9",
        "%61:80",
        "a~!$&'()*+,;=b",
        "[::]",
        "[::1]",
        "[::1]:",
        "[2001:db8::1]:8000",
        "[2001:DB8:0:0:0:0:0:1]",
        "[::ffff:1.2.3.4]:80",
        "[1:2:3:4:5:6:7.8.9.10]",
        "[v1.x]",
        "[V1f.a:b,c~!$]:80",
    ],
)
def test_host_may_be_any_name_or_address_or_empty(address: Address, host: str) -> None:
    """RFC 3986, section 3.2.2."""
    request = f"GET /1 HTTP/1.1\r\nHost: {host} \r\n\r\n".encode()
    assert [response.status for response in split(exchange(address, request))] == [200]


@pytest.mark.parametrize(
    "host",
    [
        b"%",
        b"a%",
        b"a%2",
        b"a%zz",
        b"a%2g:80",
        b"%%20",
        b"{",
        b"}",
        b"a b",
        b"a\tb",
        b"a/b",
        b"a?b",
        b"a#b",
        b"a@b",
        b"@a",
        b"http://a",
        b'"a"',
        b"a<b",
        b"a\\b",
        b"a^b",
        b"a|b",
        b"a`b",
        b"\xff",
        b"\xc3\xbc.example",
        b"\x06",
        b"\x7f",
        b"a:b",
        b"a:8x",
        b"a:80:80",
        b"a:-1",
        b"a:+1",
        b"a:\xb2",
        b"::1",
        b"::1:80",
        b"[",
        b"]",
        b"[]",
        b"[:]",
        b"[::1",
        b"::1]",
        b"[[::1]]",
        b"[::1]x",
        b"x[::1]",
        b"[::1]:x",
        b"[zz]",
        b"[x]",
        b"[1.2.3.4]",
        b"[.]",
        b"[:::]",
        b"[1::2::3]",
        b"[1:2:3:4:5:6:7]",
        b"[1:2:3:4:5:6:7:8:9]",
        b"[12345::]",
        b"[::g]",
        b"[::1.2.3]",
        b"[::1.2.3.256]",
        b"[::1.2.3.04]",
        b"[::1%eth0]",
        b"[::1%25eth0]",
        b"[::1%2525]",
        b"[::1/64]",
        b"[v1]",
        b"[v1.]",
        b"[v.x]",
        b"[vg.x]",
        b"[v1.a/b]",
        b"[v1.%61]",
    ],
)
@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_invalid_host_gets_400_in_every_version(
    address: Address, host: bytes, version: bytes
) -> None:
    """RFC 9112, section 3.2. RFC 9844 has withdrawn zone identifiers."""
    request = b"GET /1 HTTP/%s\r\nHost: %s\r\n\r\n" % (version, host)
    [refused] = split(exchange(address, request + SMALL))
    assert refused.status == 400
    assert refused.headers["Connection"] == "close"


@pytest.mark.parametrize(
    "lines",
    [
        b"Host: x\r\nHost: y\r\n",
        b"Host: x\r\nHost: x\r\n",
        b"Host: x\r\nhost:\r\n",
        b"Host:\r\nHost: x\r\n",
        b"Host:\r\nHost:\r\n",
        b"Host: x,\r\nA: b\r\nHost: y\r\n",
    ],
)
def test_several_host_fields_get_400(address: Address, lines: bytes) -> None:
    [refused] = split(exchange(address, b"GET /1 HTTP/1.1\r\n" + lines + b"\r\n" + SMALL))
    assert refused.status == 400


@pytest.mark.parametrize(
    ("length", "statuses"),
    [
        (b"0", [200, 200]),
        (b"00", [200, 200]),
        (b"0" * 9999, [200, 200]),
        (b"1", [200]),
        (b"9223372036854775807", [200]),
        (b"9223372036854775808", [200]),
        (b"18446744073709551615", [200]),
        (b"18446744073709551616", [400]),
        (b"9" * 9999, [400]),
        (b"1_0", [400]),
        (b"1.0", [400]),
        (b"1 0", [400]),
        (b"\xb2", [400]),
        (b"1,", [400]),
        (b"0, 0", [400]),
    ],
    ids=lambda value: str(value[:30]),
)
def test_body_of_any_announced_length_ends_the_connection(
    address: Address, length: bytes, statuses: list[int]
) -> None:
    request = b"GET /1 HTTP/1.1\r\nHost: x\r\nContent-Length: %s\r\n\r\n" % length
    assert [each.status for each in split(exchange(address, request + SMALL))] == statuses


@pytest.mark.parametrize("size", [b"0", b"1", b"f" * 16, b"1" + b"0" * 16, b"f" * 9999, b"x"])
def test_chunk_of_any_size_is_not_read(address: Address, size: bytes) -> None:
    request = b"GET /1 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    [response] = split(exchange(address, request + size + b"\r\n" + SMALL))
    assert response.status == 200
    assert response.headers["Connection"] == "close"


@pytest.mark.parametrize(
    "lines",
    [
        b"Transfer-Encoding: gzip, chunked\r\n",
        b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: ,chunked\r\n",
    ],
)
def test_transfer_coding_other_than_chunked_gets_501(address: Address, lines: bytes) -> None:
    """RFC 9112, section 6.1."""
    [refused] = split(
        exchange(address, b"GET /1 HTTP/1.1\r\nHost: x\r\n" + lines + b"\r\n" + SMALL)
    )
    assert refused.status == 501
    assert refused.headers["Connection"] == "close"


@pytest.mark.parametrize(
    ("version", "lines", "stays"),
    [
        (b"1.1", b"", True),
        (b"1.1", b"Connection: close\r\n", False),
        (b"1.1", b"Connection: x, Close\r\n", False),
        (b"1.1", b"Connection: x\r\nConnection: close\r\n", False),
        (b"1.1", b"Connection: closed\r\n", True),
        (b"1.1", b"Upgrade: h2c\r\n", True),
        (b"1.1", b"Connection: upgrade\r\nUpgrade: h2c\r\n", False),
        (b"1.0", b"", False),
        (b"1.0", b"Connection: keep-alive\r\n", True),
        (b"1.0", b"Connection: Keep-Alive, x\r\n", True),
        (b"1.0", b"Connection: close, keep-alive\r\n", False),
        (b"1.0", b"Connection: x\r\nProxy-Connection: keep-alive\r\n", False),
        (b"1.2", b"", True),
    ],
)
def test_connection_stays_open_as_version_and_fields_say(
    address: Address, version: bytes, lines: bytes, *, stays: bool
) -> None:
    """Requests with the same fields share the parsed result, whatever their version is."""
    request = b"GET /1 HTTP/%s\r\nHost: x\r\n%s\r\n" % (version, lines)
    for _ in range(2):
        assert len(split(exchange(address, request * 2))) == (2 if stays else 1)
