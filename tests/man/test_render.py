"""man/render.py: the pages as HTML, with an index, links that lead somewhere, and a style sheet."""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import pytest

from tests.support.manpages import LINKS, MAN, PAGES
from tests.support.programs import ROOT, environment, tool
from tests.support.sockets import PATIENCE

if TYPE_CHECKING:
    from pathlib import Path


class Document(HTMLParser):
    """What the tests look at in a rendered file."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.ids: list[str] = []
        self.hrefs: list[str] = []
        self.words: list[str] = []
        self.feed(path.read_text())
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append((tag, values))
        self.ids += [value for name, value in attrs if name == "id" and value is not None]
        self.hrefs += [value or "" for name, value in attrs if name in {"href", "src"}]

    def handle_data(self, data: str) -> None:
        self.words += data.split()

    @property
    def text(self) -> str:
        return " ".join(self.words)


def run(*arguments: str | Path, **changes: str) -> subprocess.CompletedProcess[str]:
    """Run the command that renders, as CONTRIBUTING.md has it."""
    return subprocess.run(
        [sys.executable, "man/render.py", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        env=environment(**changes),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Render all pages into a folder that is not there yet."""
    tool("mandoc", "mandoc")
    made = tmp_path_factory.mktemp("man") / "a" / "html"
    result = run(made)
    assert (result.stderr, result.stdout) == ("", f"{made / 'index.html'}\n")
    assert result.returncode == 0
    return made


@pytest.fixture(scope="module")
def documents(folder: Path) -> dict[str, Document]:
    """Parse the files, by their names."""
    return {path.name: Document(path) for path in folder.glob("*.html")}


def test_folder_has_each_page_once_an_index_and_a_style_sheet(folder: Path) -> None:
    expected = {f"{page.name}.html" for page in PAGES} | {"index.html", "style.css"}
    assert {path.name for path in folder.iterdir()} == expected


def test_each_link_leads_to_a_file_of_the_folder_and_to_an_id_in_it(
    documents: dict[str, Document],
) -> None:
    """A page may name an address of the web, too."""
    broken = []
    for name, document in documents.items():
        for href in document.hrefs:
            url = urlsplit(href)
            if url.scheme in {"http", "https"}:
                continue
            target = documents.get(url.path or name)
            if url.path == "style.css":
                found = True
            else:
                found = target is not None and unquote(url.fragment) in {"", *target.ids}
            if url.scheme or url.netloc or not found:
                broken.append((name, href))
    assert broken == []


def test_each_reference_to_a_page_of_ours_is_a_link_to_it(documents: dict[str, Document]) -> None:
    """Those to manuals of other packages are text."""
    names = {path.name: path.resolve().name for path in (*PAGES, *LINKS)}
    for page in PAGES:
        document = documents[f"{page.name}.html"]
        referenced = set(re.findall(r"^\.(?:It )?Xr (\S+) (\d)", page.read_text(), re.MULTILINE))
        linked = {href for href in document.hrefs if "#" not in href} - {"index.html", "style.css"}
        pages = {f"{name}.{section}" for name, section in referenced}
        assert {f"{names[each]}.html" for each in pages & names.keys()} <= linked
        for each in pages - names.keys():
            assert f"{each[:-2]}({each[-1]})" in document.text
            assert f"{each}.html" not in linked


def test_ids_are_unique_in_each_file(documents: dict[str, Document]) -> None:
    for name, document in documents.items():
        assert len(document.ids) == len(set(document.ids)), name


def test_each_section_has_an_anchor(documents: dict[str, Document]) -> None:
    for page in PAGES:
        document = documents[f"{page.name}.html"]
        for title in re.findall(r"^\.Sh (.*)", page.read_text(), re.MULTILINE):
            assert title.replace(" ", "_") in document.ids


def test_index_leads_to_each_page_and_each_page_to_the_index(
    documents: dict[str, Document],
) -> None:
    index = documents["index.html"]
    assert sorted(href for href in index.hrefs if href.endswith(".html")) == sorted(
        f"{page.name}.html" for page in PAGES
    )
    for page in PAGES:
        assert "index.html" in documents[f"{page.name}.html"].hrefs


def test_index_has_the_description_and_the_names_of_each_page(
    documents: dict[str, Document],
) -> None:
    """The symbolic links, with the names of libowfat, are among the names of their page."""
    words = documents["index.html"].words
    for page in PAGES:
        start = words.index(f"{page.stem}({page.suffix[1:]})") + 1
        [description] = re.findall(r"^\.Nd (.*)", page.read_text(), re.MULTILINE)
        expected = description.replace(r"\-", "-").split()
        assert words[start : start + len(expected)] == expected
    for link in LINKS:
        assert {link.stem, f"{link.stem},"} & {*words}


def test_each_file_has_a_language_a_viewport_a_title_and_the_style_sheet(
    documents: dict[str, Document],
) -> None:
    titles = set()
    for name, document in documents.items():
        assert ("html", {"lang": "en"}) in document.tags, name
        viewport = {"name": "viewport", "content": "width=device-width, initial-scale=1"}
        assert ("meta", viewport) in document.tags
        assert ("link", {"rel": "stylesheet", "href": "style.css"}) in document.tags
        titles.add(document.words[0])
    assert len(titles) == len(documents)


def test_style_sheet_has_dark_colors_and_loads_nothing(folder: Path) -> None:
    style = (folder / "style.css").read_text()
    assert style == (MAN / "style.css").read_text()
    assert "@media (prefers-color-scheme: dark)" in style
    assert "url(" not in style
    assert "@import" not in style


def test_rendering_again_replaces_the_files(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / "index.html").write_text("old")
    assert run(folder).returncode == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_missing_mandoc_is_reported_with_its_package(tmp_path: Path) -> None:
    result = run(tmp_path, PATH=str(tmp_path))
    assert result.returncode == 1
    assert result.stderr == (
        "man/render.py: mandoc is not installed (Debian: apt-get install mandoc)\n"
    )


def test_missing_folder_is_a_wrong_usage() -> None:
    result = run()
    assert result.returncode == 2
    assert "usage: render.py [-h] FOLDER" in result.stderr


def test_folder_that_is_a_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = run(tmp_path / "file")
    assert result.returncode == 1
    assert re.fullmatch(r"man/render\.py: .*File exists.*\n", result.stderr)
