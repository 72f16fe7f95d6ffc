"""Addresses without the suffix .html."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.httpd import SECRET, Address, address_of, get, program, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(name="clean")
def serve_clean(site: Path) -> Iterator[Address]:
    """Serve pages whose addresses have no suffix."""
    (site / "about.html").write_bytes(b"about")
    (site / "1.html").write_bytes(b"one")
    (site / "sub" / "about.html").write_bytes(b"about sub")
    (site / "sub.html").write_bytes(b"not the folder")
    (site / "folder.html").mkdir()
    (site / "bare.html").mkdir()
    (site / "out.html").symlink_to("../secret")
    (site / "deep.html").symlink_to("sub/deep/file")
    (site / ".well-known.html").write_bytes(SECRET)
    (site / ("x" * 252)).mkdir()
    with serving(site, clean_urls=True) as (_, address):
        yield address


@pytest.mark.parametrize(
    ("target", "status", "body"),
    [
        ("/about", 200, b"about"),
        ("/about?x", 200, b"about"),
        ("/about.html", 200, b"about"),
        ("/sub/about", 200, b"about sub"),
        ("/%61bout", 200, b"about"),
        ("/deep", 200, b"deep"),
        ("/index", 200, b"<h1>home</h1>"),
        ("/sub", 200, b"not the folder"),
        ("/sub/", 200, b"<h1>sub</h1>"),
        ("/about/", 404, None),
        ("/about.htm", 404, None),
        ("/nothing", 404, None),
        ("/folder", 404, None),
        ("/folder.html", 301, None),
        ("/bare", 301, None),
        ("/" + "x" * 252, 301, None),
        ("/" + "y" * 252, 404, None),
        ("/out", 403, None),
        ("/.hidden", 404, None),
        ("/.well-known", 404, None),
    ],
)
def test_file_comes_first_then_the_page_then_the_directory(
    clean: Address, target: str, status: int, body: bytes | None
) -> None:
    """A path with a slash at its end is a directory's."""
    response = get(clean, target)
    assert response.status == status
    assert body is None or response.body == body


def test_file_without_a_suffix_hides_the_page_of_its_name(site: Path, clean: Address) -> None:
    assert get(clean, "/1").body == (site / "1").read_bytes()
    assert get(clean, "/1.html").body == b"one"


def test_page_has_its_type_its_tag_and_the_files_beside_it(site: Path, clean: Address) -> None:
    (site / "about.html.br").write_bytes(b"br of about")
    direct = get(clean, "/about.html", Accept_Encoding="br")
    response = get(clean, "/about", Accept_Encoding="br")
    assert direct.body == b"br of about"
    direct.headers["Date"] = response.headers["Date"]
    assert response == direct


def test_clean_urls_are_an_option(site: Path) -> None:
    (site / "about.html").write_bytes(b"about")
    (site / ".private.html").write_bytes(SECRET)
    for options, status in (((), 404), (("--clean-urls",), 200)):
        with program(site, *options) as (_, url):
            assert get(address_of(url), "/about").status == status
            assert get(address_of(url), "/.private").status == 404
