"""The first and the last system call of each name, in each scenario, with every fault."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.faults.__main__ import run
from tests.faults.shim import build
from tests.support.programs import tool

if TYPE_CHECKING:
    from pathlib import Path


def test_every_fault_at_the_first_and_last_call_of_each_name(tmp_path: Path) -> None:
    tool("gcc", "gcc libc6-dev")
    report = run(build(tmp_path), [], ends=True)
    assert report.failures == []
    assert report.rows
    assert all(combinations == met > 0 for _, _, combinations, met in report.rows)
