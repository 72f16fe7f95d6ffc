"""The package: it needs httptools, and the rest of the library does not need the package."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING

import pytest

from tests.support.httpd import run_httpd
from tests.support.programs import environment, run_python

if TYPE_CHECKING:
    from pathlib import Path


def test_without_httptools_the_program_names_the_extra_that_installs_it(
    site: Path, tmp_path: Path
) -> None:
    """A module that shadows httptools fails as a missing one does."""
    (tmp_path / "httptools.py").write_text("raise ModuleNotFoundError('', name='httptools')")
    result = run_httpd(site, env=environment(PYTHONPATH=os.fspath(tmp_path)))
    assert result.returncode == 1
    assert result.stderr == (
        "iobatch.httpd: httptools is not installed: pip install 'iobatch[httpd]'\n"
    )


def test_other_missing_module_is_reported_under_its_own_name(site: Path, tmp_path: Path) -> None:
    (tmp_path / "httptools.py").write_text("import absent")
    result = run_httpd(site, env=environment(PYTHONPATH=os.fspath(tmp_path)))
    assert result.returncode == 1
    assert result.stderr.endswith("ModuleNotFoundError: No module named 'absent'\n")
    assert "pip install" not in result.stderr


def test_library_loads_neither_the_server_nor_httptools() -> None:
    result = run_python(
        "import sys, iobatch, iobatch.aio, iobatch.filters\n"
        "print(*[name for name in sys.modules if name.startswith(('iobatch.httpd', 'httptools'))])"
    )
    assert (result.stdout, result.stderr) == ("\n", "")


@pytest.mark.parametrize("name", ["__main__", "password"])
def test_importing_the_module_of_a_program_runs_nothing(name: str) -> None:
    """Tools for documentation import each module of a package."""
    importlib.import_module(f"iobatch.httpd.{name}")
