"""The process with the shim: it runs scenarios, and writes a line of JSON for each event.

The lines are ["form", whether iobatch is compiled] at first; ["at", scenario, fault] before each
run; and ["result", scenario, calls, combinations, met, failures] after the last one of a scenario.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import sys
import tempfile
from pathlib import Path

from iobatch import COMPILED
from tests.faults.harness import Runner, load_scenarios
from tests.faults.shim import Fault
from tests.support.loops import new_loop

# The seconds after which a run hangs.
PATIENCE = 30


def report(*event: object) -> None:
    os.write(1, json.dumps(event).encode() + b"\n")


def started(name: str, fault: str) -> None:
    faulthandler.dump_traceback_later(PATIENCE, exit=True)
    report("at", name, fault)


def main(chosen: list[str], *, ends: bool) -> None:
    """Run the chosen scenarios, given as in `python -m tests.faults`."""
    faulthandler.enable()
    scenarios = load_scenarios()
    report("form", COMPILED)
    new_loop("uvloop").close()  # libuv opens a pipe with its first loop, which stays open
    # The scenarios collect garbage. Without this, to look at all modules takes most of the time.
    gc.collect()
    gc.freeze()
    with tempfile.TemporaryDirectory() as folder:
        runner = Runner(Path(folder), started)
        for each in chosen or scenarios:
            name, _, fault = each.partition("/")
            faults = [Fault.parse(fault)] if fault else None
            report("result", name, *runner.run(scenarios[name], faults, ends=ends))
    faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    main(sys.argv[2:], ends=sys.argv[1] == "ends")
