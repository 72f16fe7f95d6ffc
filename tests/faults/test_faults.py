"""The first and the last system call of each name, in each scenario, with every fault."""

from __future__ import annotations

import pytest

from iobatch import COMPILED
from tests.faults.__main__ import FORMS, Row, run, total_of, unmet
from tests.faults.harness import load_scenarios
from tests.faults.shim import CALLS, build
from tests.support.programs import tool

SCENARIOS = list(load_scenarios())
# All scenarios run in the first test's setup, which takes minutes on a loaded machine.
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Row]:
    """Run all scenarios; return their rows by their names."""
    tool("gcc", "gcc libc6-dev")
    shim = build(tmp_path_factory.mktemp("shim"))
    form = FORMS[0] if COMPILED else FORMS[1]
    return {row.argument: row for row in run(shim, SCENARIOS, form, ends=True)}


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_first_and_last_call_of_each_name_may_fail_in_every_way(
    scenario: str, rows: dict[str, Row]
) -> None:
    row = rows[scenario]
    assert row.failures == []
    assert row.combinations == row.met.total() == row.passed > 0


@pytest.mark.parametrize("call", CALLS)
def test_call_meets_each_fault_in_some_scenario(call: str, rows: dict[str, Row]) -> None:
    assert unmet(total_of(rows.values()), call) == []
