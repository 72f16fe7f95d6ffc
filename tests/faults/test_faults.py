"""The first and the last system call of each name, in each scenario, with every fault."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from iobatch import COMPILED
from tests.faults.__main__ import run
from tests.faults.harness import load_scenarios
from tests.faults.shim import build
from tests.support.programs import tool

if TYPE_CHECKING:
    from pathlib import Path

MODULES: dict[str, list[str]] = {}
for name, each in load_scenarios().items():
    MODULES.setdefault(each.function.__module__.rpartition(".")[2], []).append(name)


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the library to preload."""
    tool("gcc", "gcc libc6-dev")
    return build(tmp_path_factory.mktemp("shim"))


@pytest.mark.parametrize("module", MODULES)
def test_first_and_last_call_of_each_name_may_fail_in_every_way(module: str, shim: Path) -> None:
    report = run(shim, MODULES[module], ends=True)
    assert report.failures == []
    assert report.compiled == COMPILED
    assert [row[0] for row in report.rows] == MODULES[module]
    assert all(combinations == met > 0 for _, _, combinations, met in report.rows)
