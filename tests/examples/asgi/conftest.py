"""Fixtures for the tests of asgi_server.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.asgi import LARGE, SMALL

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(name="folder")
def make_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the files that the applications serve."""
    (tmp_path / "large").write_bytes(LARGE)
    (tmp_path / "small").write_bytes(SMALL)
    (tmp_path / "index.html").write_bytes(b"<h1>home</h1>")
    monkeypatch.setenv("ASGI_FOLDER", str(tmp_path))
    monkeypatch.setenv("ASGI_FILE", str(tmp_path / "small"))
    return tmp_path
