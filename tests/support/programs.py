"""Programs that tests run: Python, command-line tools, a browser."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import pytest

import iobatch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ROOT = Path(__file__).parents[2]
# Changes of the environment of a program in which coverage.py must not run: it adds objects, and
# writes to stderr in a subinterpreter.
UNMEASURED: Mapping[str, None] = MappingProxyType({"COVERAGE_PROCESS_CONFIG": None})


def environment(**changes: str | None) -> dict[str, str]:
    """Return this process's environment with changes; a Python program imports this library.

    Args:
        changes: the values of variables; None removes a variable.

    """
    path = str(Path(iobatch.__file__).parent.parent)
    variables = {**os.environ, "PYTHONPATH": path, **changes}
    return {name: value for name, value in variables.items() if value is not None}


def run_python(
    code: str, *args: str, options: Sequence[str] = (), **changes: str | None
) -> subprocess.CompletedProcess[str]:
    """Run code in an interpreter of its own.

    Args:
        code: the program.
        args: its arguments.
        options: the interpreter's own, before the program.
        changes: of the environment.

    """
    return subprocess.run(
        [sys.executable, *options, "-c", code, *args],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment(**changes),
    )


def tool(name: str, package: str) -> str:
    """Return the path of a program, or skip the test.

    A test calls this first, so that it skips before any thread, server or process is running.
    """
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is missing: install it (Debian: apt-get install {package})")
    return path


def open_files(pid: int) -> list[Path]:
    """Return what the open descriptors of a running process refer to.

    One that is closed meanwhile is left out, and so is all of a process that ends.
    """
    files = []
    with suppress(FileNotFoundError, ProcessLookupError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError, ProcessLookupError):
                files.append(link.readlink())
    return files


def browse(url: str, home: Path, **changes: str) -> str:
    """Load a page in a browser, and return its DOM as HTML after its scripts have run.

    Args:
        url: the page's.
        home: where the browser's profile, caches and settings are written, not to the user's own.
        changes: of the environment, as TZ.

    """
    chromium = tool("chromium", "chromium")
    home.mkdir(exist_ok=True)
    folders = {name: str(home / name) for name in ("CONFIG", "CACHE", "DATA", "STATE")}
    result = subprocess.run(
        [
            chromium,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--no-first-run",
            f"--user-data-dir={home / 'profile'}",
            "--dump-dom",
            url,
        ],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
        env=environment(
            HOME=str(home),
            XDG_RUNTIME_DIR=str(home),  # for PulseAudio, which would use the temporary folder
            **{f"XDG_{name}_HOME": folder for name, folder in folders.items()},
            **changes,
        ),
    )
    return result.stdout
