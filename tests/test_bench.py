"""The benchmarks' own tools. That all tables run is shown by `python -m tests.bench --smoke`."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from tests.bench.report import in_turn

ROOT = Path(__file__).parents[1]
BESIDE = """
import signal
from tests.bench.reader import beside
with beside(signal.pause):
    print("both run", flush=True)
    signal.pause()
"""


def test_what_runs_beside_a_benchmark_ends_with_it() -> None:
    """A killed benchmark leaves no process behind: nothing holds its output open any more."""
    with subprocess.Popen([sys.executable, "-c", BESIDE], stdout=subprocess.PIPE, cwd=ROOT) as main:
        assert main.stdout is not None
        assert main.stdout.readline() == b"both run\n"
        main.kill()
        assert main.stdout.read() == b""


def test_each_turn_begins_with_another_way() -> None:
    """All ways have as many turns, and none always follows the same other one."""
    order: list[str] = []
    results = in_turn({name: partial(order.append, name) for name in "ABC"}, 4)
    assert "".join(order) == "ABCBCACABABC"
    assert results == {name: [None] * 4 for name in "ABC"}


@pytest.mark.parametrize("arguments", [["--turns", "0"], ["--turns=-1"], ["--plots", __file__]])
def test_what_makes_no_sense_is_refused_in_words(arguments: list[str]) -> None:
    """A count below 1, and a folder that is a file, end with a message and not with a traceback."""
    command = [sys.executable, "-m", "tests.bench", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 2
    assert f"error: {arguments[0].split('=')[0]}" in done.stderr.replace("argument ", "")
