"""The README: its commands, example, links and tables."""

from __future__ import annotations

import re
import tomllib
from importlib.util import find_spec
from typing import TYPE_CHECKING

import iobatch
from tests.support.programs import ROOT, run_python

if TYPE_CHECKING:
    import pytest

README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """Return the code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_two_one_line_commands_install_an_extra_then_serve_or_test() -> None:
    serve, test = blocks("sh")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for command, extra, action in (
        (serve, "httpd", "-m iobatch.httpd ."),
        (test, "test", "-m pytest"),
    ):
        assert command == (
            f"python3 -m venv .venv && .venv/bin/pip install -q -e '.[{extra}]'"
            f" && .venv/bin/python {action}\n"
        )
        assert extra in project["optional-dependencies"]
    assert find_spec("iobatch.httpd.__main__")


def test_example_of_ten_lines_sends_the_license_and_prints_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    [example] = blocks("python")
    assert len(example.splitlines()) == 10
    monkeypatch.chdir(ROOT)
    result = run_python(example)
    assert result.stderr == ""
    assert result.stdout == "Here is the license.\n\n" + (ROOT / "LICENSE").read_text()


def test_each_relative_link_points_at_a_file_and_each_page_has_a_link() -> None:
    targets = re.findall(r"\]\(([^:)]+)\)", README)
    for target in targets:
        assert (ROOT / target).is_file(), target
    assert {path.name for path in (ROOT / "man").iterdir()} == {
        target.removeprefix("man/") for target in targets if target.startswith("man/")
    }


def test_each_program_in_the_folder_of_examples_is_in_the_table() -> None:
    programs = re.findall(r"^\| `(\w+\.py)` \|", README, re.MULTILINE)
    assert sorted(programs) == sorted(path.name for path in (ROOT / "examples").glob("*.py"))


def test_table_of_return_codes_has_each_code_with_its_value() -> None:
    rows = re.findall(r"^\| `(IOB_\w+)` \| (-?\d) \|", README, re.MULTILINE)
    names = {name for name in iobatch.__all__ if name.startswith("IOB_")}
    assert {name: int(value) for name, value in rows} == {
        name: getattr(iobatch, name) for name in names
    }


def test_row_of_iobatch_names_each_of_its_methods() -> None:
    [row] = re.findall(r"^\| \[`IOBatch`\].*$", README, re.MULTILINE)
    methods = {
        name
        for name, member in vars(iobatch.IOBatch).items()
        if callable(member) and not name.startswith("_")
    }
    assert set(re.findall(r"`(\w+)`", row)) == {"IOBatch", *methods}
