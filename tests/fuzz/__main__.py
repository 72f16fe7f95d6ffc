"""Fuzz what takes bytes from outside, with atheris.

Each target runs in a process of its own, as many at a time as there are processors. A target starts
from its corpus, and from what earlier runs have found, which is in build/fuzz/TARGET. An input that
fails is minimized, and the path of the result is printed.

--merge adds what was found to the corpus, as far as it reaches code that the corpus does not.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING

from tests.fuzz.targets import CORPUS, TARGETS
from tests.support.programs import ROOT

if TYPE_CHECKING:
    from pathlib import Path

_BUILD = ROOT / "build" / "fuzz"
# Longer input is slower, and has little that shorter input has not. In bytes.
_MAX_LENGTH = 1024
# The seconds that an input may take, and those in which a failing one is minimized.
_TIMEOUT = 10
_MINIMIZING = 20


def main() -> None:
    """Run what the command line says; exit with 1 if a target has failed."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="targets: " + ", ".join(TARGETS),
    )
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="default: all")
    parser.add_argument("--seconds", type=int, default=600, help="for each target (default: 600)")
    parser.add_argument("--merge", action="store_true", help="extend the corpora instead")
    args = parser.parse_args()
    if unknown := set(args.targets) - set(TARGETS):
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    if find_spec("atheris") is None:
        parser.error("atheris is missing: pip install -e '.[fuzz]' (CPython 3.11-3.13 on x86-64)")
    run = merge if args.merge else partial(fuzz, seconds=args.seconds)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        sys.exit(not all(list(pool.map(run, args.targets or TARGETS))))


def fuzz(name: str, seconds: int) -> bool:
    """Run a target for this time, and print a line; return whether its property held."""
    found, failures = _BUILD / name / "found", _BUILD / name / "failures"
    shutil.rmtree(failures, ignore_errors=True)
    for folder in (found, failures, CORPUS / name):
        folder.mkdir(parents=True, exist_ok=True)
    output = _BUILD / name / "output"
    status = _run_engine(
        output,
        name,
        f"-max_total_time={seconds}",
        f"-artifact_prefix={failures}/",
        found,
        CORPUS / name,
    )
    executions = re.search(r"executed_units: (\d+)", output.read_text(errors="replace"))
    line = f"{name}: {executions[1] if executions else 'unknown'} executions"
    if not status:
        print(f"{line}, no failure", flush=True)
        return True
    for failure in failures.iterdir():
        _run_engine(
            _BUILD / name / "minimizing",
            name,
            "-minimize_crash=1",
            f"-max_total_time={_MINIMIZING}",
            f"-exact_artifact_path={failure}",
            failure,
        )
        line += f"\n  {failure}: {failure.read_bytes()!r}"
    print(f"{line}, FAILED: {output}", flush=True)
    return False


def merge(name: str) -> bool:
    """Add to the corpus the inputs that were found and reach code that no input of it reaches."""
    corpus, found = CORPUS / name, _BUILD / name / "found"
    for folder in (corpus, found):
        folder.mkdir(parents=True, exist_ok=True)
    before = len(list(corpus.iterdir()))
    # How often code runs for an input does not count: so few inputs are added.
    output = _BUILD / name / "output"
    if _run_engine(output, name, "-merge=1", "-use_counters=0", corpus, found):
        print(f"{name}: FAILED: {output}")
        return False
    after = len(list(corpus.iterdir()))
    print(f"{name}: {after} inputs, {after - before} of them are new")
    return True


def _run_engine(output: Path, *arguments: str | Path) -> int:
    """Run the engine; return its exit status."""
    options = (f"-timeout={_TIMEOUT}", f"-max_len={_MAX_LENGTH}", "-print_final_stats=1")
    with output.open("wb") as file:
        return subprocess.run(
            [sys.executable, "-W", "error", "-m", "tests.fuzz.engine", *arguments, *options],
            cwd=ROOT,
            stdout=file,
            stderr=subprocess.STDOUT,
            check=False,
        ).returncode


if __name__ == "__main__":
    main()
