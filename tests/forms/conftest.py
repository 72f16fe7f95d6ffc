"""The library in both forms, for tests that run in one process with both."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.fakes import library_modules, pure_copy


@pytest.fixture(params=["as installed", "pure"])
def lib(request: pytest.FixtureRequest) -> Any:
    """Give the library as it is installed, and in pure Python."""
    modules = library_modules() if request.param == "as installed" else pure_copy()
    return modules["iobatch"]
