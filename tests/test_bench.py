"""Tools of the benchmarks. `python -m tests.bench --smoke` checks that all tables run."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from tests.bench.report import run_in_turn

ROOT = Path(__file__).parents[1]
PARENT = """
import signal
from tests.bench.reader import child_process
with child_process(signal.pause):
    print("both run", flush=True)
    signal.pause()
"""


def test_a_child_process_ends_with_a_killed_parent() -> None:
    """The parent's output reaches its end, so no process holds it open after the parent's end."""
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, cwd=ROOT) as main:
        assert main.stdout is not None
        assert main.stdout.readline() == b"both run\n"
        main.kill()
        assert main.stdout.read() == b""


def test_each_turn_starts_with_the_next_method() -> None:
    """All methods run equally often, and none always runs after the same other one."""
    order: list[str] = []
    results = run_in_turn({name: partial(order.append, name) for name in "ABC"}, 4)
    assert "".join(order) == "ABCBCACABABC"
    assert results == {name: [None] * 4 for name in "ABC"}


@pytest.mark.parametrize("arguments", [["--turns", "0"], ["--turns=-1"], ["--plots", __file__]])
def test_bad_options_end_with_a_usage_error(arguments: list[str]) -> None:
    """A count below 1, and a plot folder that is a file: a message and status 2, no traceback."""
    command = [sys.executable, "-m", "tests.bench", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 2
    assert f"error: {arguments[0].split('=')[0]}" in done.stderr.replace("argument ", "")
