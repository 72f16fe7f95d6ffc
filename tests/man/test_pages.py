"""The set of pages: names, references, installation, mdoc syntax."""

from __future__ import annotations

import re
import subprocess
import tomllib
from typing import TYPE_CHECKING

import pytest

import iobatch
from iobatch import aio, anyio, filters, typing
from tests.support.manpages import PAGES
from tests.support.programs import ROOT, tool
from tests.support.sockets import PATIENCE

if TYPE_CHECKING:
    from pathlib import Path

PUBLIC = {*iobatch.__all__, *filters.__all__, *aio.__all__, *anyio.__all__, *typing.__all__}
# The classes that a program makes or is given, and uses by methods.
CLASSES = {"IOBatch", "Filter", "Chunked", "TLS", "BatchWriter", "WriteOperation"}


def test_each_function_each_class_with_methods_and_the_server_have_a_page() -> None:
    functions = {name for name in PUBLIC if name.startswith(("iob_", "send_"))}
    expected = {f"{name}.3" for name in functions | CLASSES} | {"iobatch.7", "iobatch-httpd.1"}
    assert {page.name for page in PAGES} == expected


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


def test_wheel_installs_each_page_in_the_folder_of_its_section() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["shared-data"] == {
        f"man/{page.name}": f"share/man/man{page.suffix[1:]}/{page.name}" for page in PAGES
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_mandoc_has_no_warning_about_a_page(page: Path) -> None:
    lint = subprocess.run(
        [tool("mandoc", "mandoc"), "-T", "lint", "-W", "warning", page],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (lint.returncode, lint.stdout, lint.stderr) == (0, "", "")
