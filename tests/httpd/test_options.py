"""The command line's options."""

from __future__ import annotations

import pytest

from tests.support.httpd import run_httpd


@pytest.mark.parametrize("arguments", [("",), (".", "--unix", "")], ids=["directory", "--unix"])
def test_empty_path_is_refused(arguments: tuple[str, ...]) -> None:
    result = run_httpd(*arguments)
    assert result.returncode == 2
    assert result.stderr.endswith(": must not be empty\n")


@pytest.mark.parametrize(
    ("option", "value", "bounds"),
    [
        ("--port", "65536", "from 0 to 65535"),
        ("--port", "-1", "from 0 to 65535"),
        ("--workers", "0", "from 1 to 1024"),
        ("--grace", "soon", "from 0 to 1000000"),
    ],
)
def test_number_outside_its_bounds_is_refused(option: str, value: str, bounds: str) -> None:
    result = run_httpd(".", option, value)
    assert result.returncode == 2
    assert result.stderr.endswith(f"error: argument {option}: must be a number {bounds}\n")


def test_help_names_the_directory_and_the_address_options() -> None:
    result = run_httpd("--help")
    assert result.returncode == 0
    for word in ("directory", "--bind", "--port"):
        assert word in result.stdout
