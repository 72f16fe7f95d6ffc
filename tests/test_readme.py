"""The README is true: its example runs, its commands and links point at what exists."""

from __future__ import annotations

import re
import tomllib
from typing import TYPE_CHECKING

import iobatch
from tests.helpers import ROOT, run_python

if TYPE_CHECKING:
    import pytest

README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """Return the code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_commands() -> None:
    """Two commands of one line each set up .venv by an extra that exists, then serve and test."""
    serve, test = blocks("sh")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for command, extra, action in (
        (serve, "httpd", "examples/httpd ."),
        (test, "test", "-m pytest"),
    ):
        assert command == (
            f"python3 -m venv .venv && .venv/bin/pip install -q -e '.[{extra}]'"
            f" && .venv/bin/python {action}\n"
        )
        assert extra in project["optional-dependencies"]
    assert (ROOT / "examples" / "httpd" / "__main__.py").is_file()


def test_example(monkeypatch: pytest.MonkeyPatch) -> None:
    """The example runs as it stands, and what it prints is what it sent."""
    [example] = blocks("python")
    assert len(example.splitlines()) == 10
    monkeypatch.chdir(ROOT)
    result = run_python(example)
    assert result.stderr == ""
    assert result.stdout == "Here is the license.\n\n" + (ROOT / "LICENSE").read_text()


def test_links() -> None:
    """Each link to a file points at one, and every page and function is linked."""
    targets = re.findall(r"\]\(([^:)]+)\)", README)
    for target in targets:
        assert (ROOT / target).is_file(), target
    assert {path.name for path in (ROOT / "man").iterdir()} == {
        target.removeprefix("man/") for target in targets if target.startswith("man/")
    }


def test_return_codes() -> None:
    """The table of return codes has each of them, with its value."""
    rows = re.findall(r"^\| `(IOB_\w+)` \| (-?\d) \|", README, re.MULTILINE)
    names = {name for name in iobatch.__all__ if name.startswith("IOB_")}
    assert {name: int(value) for name, value in rows} == {
        name: getattr(iobatch, name) for name in names
    }


def test_methods() -> None:
    """The methods of IOBatch are all named."""
    [row] = re.findall(r"^\| \[`IOBatch`\].*$", README, re.MULTILINE)
    methods = {
        name
        for name, member in vars(iobatch.IOBatch).items()
        if callable(member) and not name.startswith("_")
    }
    assert set(re.findall(r"`(\w+)`", row)) == {"IOBatch", *methods}
