"""Request targets: which path of the directory a target means."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from iobatch.httpd.targets import split_path, split_target
from tests.support.batches import data
from tests.support.http import split
from tests.support.httpd import SECRET, SMALL, Address, exchange, get

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("target", "body"),
    [
        ("/", b"<h1>home</h1>"),
        ("/index.html", b"<h1>home</h1>"),
        ("/sub/", b"<h1>sub</h1>"),
        ("//sub///index.html", b"<h1>sub</h1>"),
        ("/sub/deep/file?query=/../../x", b"deep"),
        ("/./index.html", b"<h1>home</h1>"),
        ("/././sub/./deep/./file", b"deep"),
        ("/sub/../index.html", b"<h1>home</h1>"),
        ("/sub/deep/../../sub/deep/file", b"deep"),
        ("/sub/.", b"<h1>sub</h1>"),
        ("/sub/deep/..", b"<h1>sub</h1>"),
        ("/sub/deep/..?query", b"<h1>sub</h1>"),
        ("/sub/..", b"<h1>home</h1>"),
        ("/.", b"<h1>home</h1>"),
        ("/%2e/sub/%2E%2e/sub/%2e", b"<h1>sub</h1>"),
        ("/sub/.%2e/index.html", b"<h1>home</h1>"),
        ("/sub//../index.html", b"<h1>home</h1>"),
        ("/nothing/../sub/", b"<h1>sub</h1>"),
        ("/.git/../sub/", b"<h1>sub</h1>"),
        ("http://elsewhere/sub/../sub/./", b"<h1>sub</h1>"),
        ("/a%20b\xc3\xbc%3f.txt", b"odd"),
        ("/sub/%64eep/file", b"deep"),
        ("/a%20b%C3%BC%3f.txt", b"odd"),
        ("http://elsewhere/sub/deep/file", b"deep"),
        ("HTTPS://elsewhere", b"<h1>home</h1>"),
        ("http://elsewhere?x=/y", b"<h1>home</h1>"),
    ],
)
def test_target_is_decoded_and_directory_gives_its_index(
    address: Address, target: str, body: bytes
) -> None:
    """The query is ignored."""
    response = get(address, target)
    assert (response.status, response.body) == (200, body)


def test_target_is_split_before_its_names_are_decoded() -> None:
    """An encoded separator separates nothing."""
    assert split_target(b"/a%3Fb?c?d") == (b"/a%3Fb", b"?c?d")
    assert split_path(b"/a%3Fb//c%20d/") == [b"a?b", b"c d", b""]
    with pytest.raises(OSError, match="Invalid"):
        split_path(b"/a%2Fb")


@pytest.mark.parametrize(
    ("target", "location"),
    [
        ("/sub", "/sub/"),
        ("/bare", "/bare/"),
        ("//sub", "/sub/"),
        ("///sub//deep", "/sub/deep/"),
        ("/.//sub", "/sub/"),
        ("/sub/..//sub", "/sub/"),
        ("/bare/..//%5cevil.example", "/%5Cevil.example/"),
        ("/sub/%2e%2e/bare?a=/../b", "/bare/?a=/../b"),
        ("/sub?a=b&c", "/sub/?a=b&c"),
        ("http://elsewhere/sub", "/sub/"),
        ("/%5cevil.example", "/%5Cevil.example/"),
        ("/with%0d%0aline", "/with%0D%0Aline/"),
    ],
)
def test_directory_without_slash_redirects_to_its_path_on_this_server(
    site: Path, address: Address, target: str, location: str
) -> None:
    (site / "\\evil.example").mkdir()
    (site / "with\r\nline").mkdir()
    response = get(address, target)
    assert (response.status, response.headers["Location"]) == (301, location)


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("/nothing", 404),
        ("/sub/nothing/more", 404),
        ("/1024/", 404),
        ("/1024/more", 404),
        ("/" + "x" * 300, 404),
        ("/.hidden", 404),
        ("/.git/config", 404),
        ("/%2egit/config", 404),
        ("/sub/../.git/config", 404),
        ("/sub/./../.hidden", 404),
        ("/1024/.", 404),
        ("/1024/./more/..", 404),
        ("/...", 404),
        ("/..", 400),
        ("/../", 400),
        ("/../secret", 400),
        ("/../site/1024", 400),
        ("/./../secret", 400),
        ("//../secret", 400),
        ("/sub/../../secret", 400),
        ("/sub//../../secret", 400),
        ("/sub/%2e%2e/%2E./secret", 400),
        ("/%2e%2e/secret", 400),
        ("/.%2E/secret", 400),
        ("/..%2fsecret", 400),
        ("/sub%2f..%2f..%2fsecret", 400),
        ("/%2e%2e%5csecret", 404),
        ("/..%5csecret", 404),
        ("/%252e%252e/secret", 404),
        ("/%c0%ae%c0%ae/secret", 404),
        ("/1024%00.html", 400),
        ("/1024%", 400),
        ("/1024%1", 400),
        ("/%zz", 400),
        ("/%2", 400),
        ("/sub/%/../../1024", 400),
        ("1024", 400),
        ("?x", 400),
        ("http:/1024", 400),
        ("urn:x", 400),
        ("/%00", 400),
        ("http://x/../secret", 400),
        ("file:///etc/passwd", 400),
        ("http:///1024", 400),
        ("http://:80/1024", 400),
        ("http://me@x/1024", 400),
        ("http://[v1]/1024", 400),
        ("http://a%zz/1024", 400),
        ("*", 400),
    ],
)
def test_target_that_names_no_served_file_is_refused_and_connection_stays_open(
    address: Address, target: str, status: int
) -> None:
    refused, served = split(
        exchange(
            address,
            f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode() + SMALL,
        )
    )
    assert refused.status == status
    assert SECRET not in refused.body
    assert served.body == data(1, seed=1)


def test_absolute_file_name_in_target_stays_below_the_root(site: Path, address: Address) -> None:
    assert get(address, f"/{site.parent}/secret").status == 404
    assert get(address, f"/%2f{site.parent}/secret").status == 400
