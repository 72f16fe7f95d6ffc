"""The process with the shim: it runs scenarios, and writes a line of JSON for each event.

The lines are:

- ["form", whether iobatch is compiled] at first;
- ["begin"] before each scenario, and ["end"] after it;
- ["at", fault] before each run, where "" is a clean one, and ["ran", how often the fault was met,
  why the run failed] after it;
- ["clean", number of calls, which are too many] after the clean runs.
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


def report(event: str, *values: object) -> None:
    """Write an event."""
    if event == "at":
        faulthandler.dump_traceback_later(PATIENCE, exit=True)
    os.write(1, json.dumps([event, *values]).encode() + b"\n")


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
        runner = Runner(Path(folder), report)
        for each in chosen or scenarios:
            name, _, fault = each.partition("/")
            faults = [Fault.parse(fault)] if fault else None
            report("begin")
            runner.run(scenarios[name], faults, ends=ends)
            report("end")
    faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    main(sys.argv[2:], ends=sys.argv[1] == "ends")
