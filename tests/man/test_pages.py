"""The set of pages: names, references, installation, mdoc syntax."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from typing import TYPE_CHECKING

import pytest

import iobatch
from iobatch import aio, anyio, filters, typing
from tests.support.manpages import LINKS, MAN, PAGES, path, section
from tests.support.programs import ROOT, tool
from tests.support.sockets import PATIENCE

if TYPE_CHECKING:
    from pathlib import Path

PUBLIC = {*iobatch.__all__, *filters.__all__, *aio.__all__, *anyio.__all__, *typing.__all__}
# The classes that a program makes or is given, and uses by methods.
CLASSES = {"IOBatch", "Filter", "Chunked", "TLS", "BatchWriter", "WriteOperation"}
# The libraries from which a program may come, each with a page.
ORIGINS = {"libowfat", "libevent", "asio", "lispworks", "winsock", "asyncio"}


def test_each_function_each_class_with_methods_and_the_server_have_a_page() -> None:
    functions = {name for name in PUBLIC if name.startswith(("iob_", "send_"))}
    expected = {f"{name}.3" for name in functions | CLASSES} | {"iobatch.7", "iobatch-httpd.1"}
    expected |= {f"iobatch-{origin}.7" for origin in ORIGINS}
    assert {page.name for page in PAGES} == expected


def test_name_line_of_a_page_has_each_link_to_it() -> None:
    assert LINKS
    for link in LINKS:
        lines = section(link.resolve().name, "NAME")
        assert f".Nm {link.stem}" in [line.removesuffix(" ,") for line in lines], link.name


def test_overview_refers_to_each_other_page() -> None:
    text = path("iobatch.7").read_text()
    found = {f"{name}.{number}" for name, number in re.findall(r"\bXr (\S+) (\d)", text)}
    assert {page.name for page in PAGES} - {"iobatch.7"} - found == set()


def test_each_public_name_occurs_in_a_page() -> None:
    text = "\n".join(page.read_text() for page in PAGES)
    assert [name for name in PUBLIC if not re.search(rf"\b{name}\b", text)] == []


def test_each_reference_to_a_page_of_iobatch_points_at_a_page() -> None:
    names = {page.name for page in PAGES}
    found = set()
    for page in PAGES:
        for name, number in re.findall(r"\bXr (\S+) (\d)", page.read_text()):
            if name in PUBLIC or name.lower().startswith("iob"):
                assert f"{name}.{number}" in names, page.name
                found.add(name)
    assert found >= CLASSES


def test_wheel_installs_the_folders_of_all_sections() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    folders = {page.parent.name for page in PAGES}
    assert wheel["shared-data"] == {f"man/{name}": f"share/man/{name}" for name in folders}
    assert [page for page in PAGES if page.parent.name != f"man{page.suffix[1:]}"] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_mandoc_finds_no_fault_in_a_page(page: Path) -> None:
    """Not in the style either, except that manuals of other packages may be missing."""
    lint = subprocess.run(
        [tool("mandoc", "mandoc"), "-T", "lint", "-W", "style", page],
        stdout=subprocess.PIPE,
        text=True,
        timeout=PATIENCE,
        check=False,
        env=os.environ | {"MANPATH": f"{MAN}"},
    )
    missing = re.compile(r"referenced manual not found: Xr (\S+) (\d)")
    for line in lint.stdout.splitlines():
        reference = missing.search(line)
        assert reference, line
        assert not path(f"{reference[1]}.{reference[2]}").exists(), line
