"""What is sent in place of what is not there: an application's page, or the site's own 404 page."""

from __future__ import annotations

import errno
import gzip
import os
import re
from typing import TYPE_CHECKING, Any

import pytest

from iobatch.httpd.cache import FRESH, FileCache
from iobatch.httpd.fallbacks import NOT_FOUND_PAGE, page_names
from iobatch.httpd.files import Files
from tests.support.batches import data
from tests.support.http import split
from tests.support.httpd import (
    MODIFIED,
    SECRET,
    Address,
    address_of,
    etag_of,
    exchange,
    get,
    program,
    prose,
    run_httpd,
    serving,
    show_headers,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HOME = b"<h1>home</h1>"
APP = prose(5000, seed=1)
LOST = prose(5000, seed=2)


@pytest.fixture(name="app")
def serve_app(site: Path) -> Iterator[Address]:
    """Serve a directory whose index is an application's page."""
    (site / "loop").symlink_to("loop")
    with serving(site, spa="index.html") as (_, address):
        yield address


# The application's page


@pytest.mark.parametrize(
    ("target", "headers", "is_page"),
    [
        ("/users/7", {}, True),
        ("/users/7?tab=2", {}, True),
        ("/users/", {}, True),
        ("/1/more", {}, True),
        ("/v1.2/users", {}, True),
        ("/.git/config", {}, True),
        (f"/{'x' * 300}", {}, True),
        ("/loop", {}, True),
        ("/users/7.html", {}, False),
        ("/app.js", {}, False),
        ("/a%2Ejs", {}, False),
        ("/.hidden", {}, False),
        ("/users", {"Accept": "text/html"}, True),
        ("/users", {"Accept": "TEXT/HTML;q=0.1"}, True),
        ("/users", {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}, True),
        ("/users", {"Accept": "text/*"}, True),
        ("/users", {"Accept": "image/png, */*;q=0.1"}, True),
        ("/users", {"Accept": "text/html;q=0.5, text/*;q=0"}, True),
        ("/users", {"Accept": "text/html;level=1;q=0, text/html"}, True),
        ("/users", {"Accept": ""}, False),
        ("/users", {"Accept": "application/json"}, False),
        ("/users", {"Accept": "image/*"}, False),
        ("/users", {"Accept": "text/html;q=0"}, False),
        ("/users", {"Accept": "text/html;q=0, */*"}, False),
        ("/users", {"Accept": "text/*;q=0, */*"}, False),
        ("/users", {"Accept": "text/html;q=2"}, False),
        ("/app.js", {"Accept": "text/html"}, False),
    ],
    ids=show_headers,
)
def test_page_is_sent_for_what_is_not_there_and_would_be_html(
    app: Address, target: str, headers: dict[str, str], *, is_page: bool
) -> None:
    """Source: RFC 9110, section 12.5.1."""
    response = get(app, target, **headers)
    assert (response.status, response.body == HOME) == ((200, True) if is_page else (404, False))


def test_what_is_there_is_sent_and_other_errors_remain(site: Path, tmp_path: Path) -> None:
    (site / "out").symlink_to(tmp_path)
    with serving(site, spa="sub/index.html", listing=False) as (_, address):
        for target, status in (
            ("/1", 200),
            ("/", 200),
            ("/sub", 301),
            ("/bare/", 403),
            ("/out/secret", 403),
            ("/%zz", 400),
        ):
            response = get(address, target)
            assert response.status == status, target
            assert response.body != b"<h1>sub</h1>"
        assert get(address, "/nothing").body == b"<h1>sub</h1>"
        assert get(address, "/nothing", "POST").status == 405
        assert get(address, "/nothing", "OPTIONS").status == 204


def test_page_has_the_fields_of_its_file_and_varies_by_accept(site: Path) -> None:
    (site / "index.html").write_bytes(APP)
    with serving(site, spa="index.html") as (_, address):
        for headers in (
            {},
            {"Accept_Encoding": "gzip"},
            {"Range": "bytes=5-9"},
            {"If_None_Match": etag_of(site / "index.html")},
            {"If_Match": '"other"'},
        ):
            for method in ("GET", "HEAD"):
                direct = get(address, "/index.html", method, **headers)
                response = get(address, "/users/7", method, **headers)
                assert (response.status, response.body) == (direct.status, direct.body)
                if response.status != 412:
                    assert direct.headers["Vary"] == "Accept-Encoding"
                    direct.headers["Vary"] = "Accept, Accept-Encoding"
                direct.headers["Date"] = response.headers["Date"]
                assert response.headers == direct.headers
    with serving(site, spa="index.html", compress=False) as (_, address):
        assert get(address, "/users").headers["Vary"] == "Accept"
        assert "Vary" not in get(address, "/").headers


def test_page_is_sent_from_a_file_beside_it_in_an_accepted_coding(site: Path) -> None:
    (site / "index.html.br").write_bytes(b"br of home")
    with serving(site, spa="index.html") as (_, address):
        response = get(address, "/users", Accept_Encoding="br")
        assert (response.status, response.body) == (200, b"br of home")
        assert response.headers["Vary"] == "Accept, Accept-Encoding"
        assert get(address, "/", Accept_Encoding="br").headers["Vary"] == "Accept-Encoding"


def test_page_that_is_built_anew_shows_at_once(site: Path, app: Address) -> None:
    assert get(app, "/users").body == HOME
    (site / "index.html").unlink()
    assert get(app, "/users").status == 404
    (site / "index.html").write_bytes(b"second")
    assert get(app, "/users").body == b"second"
    (site / "new").write_bytes(b"third")
    (site / "new").replace(site / "index.html")
    assert get(app, "/users").body == b"third"


def test_pipelined_pages_files_and_404s_keep_their_order(site: Path, app: Address) -> None:
    (site / "404.html").write_bytes(LOST)
    sequence = ("GET /1", "GET /users", "GET /x.js", "HEAD /users", "HEAD /x.js", "GET /1024")
    requests = "".join(f"{each} HTTP/1.1\r\nHost: x\r\n\r\n" for each in sequence).encode()
    responses = split(exchange(app, requests), *(each.split()[0] for each in sequence))
    assert [each.status for each in responses] == [200, 200, 404, 200, 404, 200]
    bodies = [data(1, seed=1), HOME, LOST, b"", b"", data(1024, seed=1024)]
    assert [each.body for each in responses] == bodies


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("index.html", [b"index.html"]),
        ("./sub//index.html", [b"sub", b"index.html"]),
        ("/sub/../index.html", [b"index.html"]),
        ("a b\xfc?.txt", [b"a b\xc3\xbc?.txt"]),
    ],
)
def test_path_of_the_page_is_below_the_root_with_any_name(
    site: Path, path: str, names: list[bytes]
) -> None:
    assert page_names(Files(site), path) == names


@pytest.mark.parametrize(
    ("path", "number"),
    [
        ("nothing.html", errno.ENOENT),
        ("1/index.html", errno.ENOTDIR),
        (".hidden", errno.ENOENT),
        ("../secret", errno.EINVAL),
        ("pipe", errno.EACCES),
        ("sub", errno.EISDIR),
        ("bare/", errno.EISDIR),
        (".", errno.EISDIR),
        ("..", errno.EISDIR),
    ],
)
def test_page_must_be_a_file_that_is_served(site: Path, path: str, number: int) -> None:
    os.mkfifo(site / "pipe")
    with pytest.raises(OSError) as caught:
        page_names(Files(site), path)
    assert caught.value.errno == number


def test_spa_option_names_index_html_or_another_file(site: Path) -> None:
    with program(site, "--spa") as (_, url):
        assert get(address_of(url), "/users").body == HOME
    with program(site, "--spa=sub/index.html") as (_, url):
        assert get(address_of(url), "/users").body == b"<h1>sub</h1>"


@pytest.mark.parametrize("path", ["sub", "{site}", "{site}/"])
def test_directory_in_place_of_the_page_gets_advice(site: Path, path: str) -> None:
    """The directory to serve may follow --spa, which takes it. It need not be below the root."""
    path = path.format(site=site)
    result = run_httpd(site, "--spa", path)
    assert result.returncode == 2
    assert result.stderr == (
        f"iobatch.httpd: --spa {path}, in {site}: it is a directory: "
        "put the directory to serve before --spa, or write --spa=FILE\n"
    )


def test_page_that_is_not_there_is_reported_in_one_line(site: Path) -> None:
    result = run_httpd(site / "bare", "--spa")
    assert (result.returncode, result.stderr) == (
        2,
        f"iobatch.httpd: --spa index.html, in {site / 'bare'}: No such file or directory\n",
    )


# The page of a 404


@pytest.mark.parametrize("target", ["/nothing", "/x.js", "/1/more", "/.hidden", f"/{'x' * 300}"])
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Range": "bytes=1-5"},
        {"If_None_Match": "*"},
        {"If_Match": '"other"'},
        {"If_Modified_Since": "Tue, 14 Nov 2023 22:13:20 GMT"},
        {"Range": "bytes=1-5", "If_Range": '"other"'},
    ],
    ids=show_headers,
)
def test_404_html_is_the_body_of_every_404(
    site: Path, address: Address, target: str, headers: dict[str, str]
) -> None:
    (site / "404.html").write_bytes(LOST)
    os.utime(site / "404.html", (MODIFIED, MODIFIED))
    for method, body in (("GET", LOST), ("HEAD", b""), ("GET", LOST)):
        response = get(address, target, method, **headers)
        assert (response.status, response.body) == (404, body)
        del response.headers["Date"]
        assert response.headers == {
            "Content-Type": "text/html; charset=utf-8",
            "Content-Length": "5000",
            "Cache-Control": "no-store",
        }


def test_404_html_is_a_file_at_its_own_path(site: Path, address: Address) -> None:
    (site / "404.html").write_bytes(LOST)
    assert get(address, "/nothing").status == 404
    response = get(address, "/404.html")
    assert (response.status, response.body) == (200, LOST)
    assert response.headers["ETag"] == etag_of(site / "404.html")
    assert get(address, "/404.html", Range="bytes=1-5").status == 206


@pytest.mark.parametrize("headers", [{}, {"Range": "bytes=1-5"}], ids=show_headers)
def test_404_html_is_coded(site: Path, address: Address, headers: dict[str, str]) -> None:
    (site / "404.html").write_bytes(LOST)
    response = get(address, "/nothing", Accept_Encoding="gzip", **headers)
    assert (response.status, gzip.decompress(response.body)) == (404, LOST)
    assert response.headers["Content-Encoding"] == "gzip"
    assert "ETag" not in response.headers
    (site / "404.html.br").write_bytes(b"br of the page")
    (site / "404.html").touch()
    os.utime(site / "404.html", (MODIFIED, MODIFIED))
    response = get(address, "/nothing", Accept_Encoding="br", **headers)
    assert (response.status, response.body) == (404, b"br of the page")
    assert response.headers["Content-Encoding"] == "br"
    assert "Accept-Ranges" not in response.headers


def test_404_html_is_served_by_the_rules_of_all_files(site: Path, tmp_path: Path) -> None:
    """A link out of the root, a directory and a hidden name are not."""
    (tmp_path / "404.html").write_bytes(SECRET)
    (site / "404.html").symlink_to("../404.html")
    with serving(site) as (_, address):
        response = get(address, "/nothing")
        assert response.status == 404
        assert b'<a href="/">' in response.body
    with serving(site, follow_links=True) as (_, address):
        assert get(address, "/nothing").body == SECRET
    (site / "404.html").unlink()
    (site / "404.html").mkdir()
    with serving(site) as (_, address):
        assert b'<a href="/">' in get(address, "/nothing").body


def test_404_html_is_opened_once_and_a_missing_one_remembered_while_fresh(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Any] = []
    files = FileCache(Files(site))
    open_file = Files.open

    def opening(self: Files, names: Any) -> Any:
        opened.append(names)
        return open_file(self, names)

    monkeypatch.setattr(Files, "open", opening)
    for now in (0.0, FRESH / 2):
        assert files.get_fallback(NOT_FOUND_PAGE, 404, now) is None
    assert len(opened) == 1
    (site / "404.html").write_bytes(LOST)
    page = files.get_fallback(NOT_FOUND_PAGE, 404, FRESH)
    assert page is not None
    assert files.get_fallback(NOT_FOUND_PAGE, 404, FRESH * 1.5) is page
    assert len(opened) == 2
    (site / "404.html").unlink()
    assert files.get_fallback(NOT_FOUND_PAGE, 404, FRESH * 1.5) is None
    assert len(files) == 1
    files.sweep(FRESH * 3)
    assert len(files) == 0
    files.close()


def test_log_has_the_status_and_the_size_of_the_page(site: Path) -> None:
    (site / "404.html").write_bytes(LOST)
    with program(site, "--log", "common", "--spa") as (process, url):
        assert get(address_of(url), "/users").status == 200
        assert get(address_of(url), "/x.js").status == 404
        process.terminate()
        assert process.stdout is not None
        found = re.findall(r'"GET (\S+) HTTP/1.1" (\d+) (\d+)\n', process.stdout.read())
    assert found == [("/users", "200", f"{len(HOME)}"), ("/x.js", "404", "5000")]
