"""Measure iobatch against other software, and print the results as Markdown tables.

All methods of a comparison take turns in one run, and the ratios within each turn are what counts:
absolute times hold for one machine at one moment. Run the benchmarks on an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from importlib import import_module
from pathlib import Path

from tests.bench.report import Options

TABLES = {
    "goals": "goals for CPU: libowfat, asyncio, uvloop, aiofastnet; compiled and pure form",
    "send": "iob_send against libowfat, libevent, C and Python: CPU, system calls, segments",
    "write": "iob_write and filters: callbacks, gzip, TLS",
    "aio": "BatchWriter against the methods of asyncio and uvloop",
    "growth": "cost and memory by the size of batches and files",
    "slow": "a thousand slow peers",
    "kernel": "other system calls (zero-copy, splice, fadvise); the crossover of read and sendfile",
    "httpd": "iobatch.httpd against nginx and Python servers: CPU, requests per second, memory",
    "asgi": "asgi_server.py of the examples against uvicorn and granian",
    "hostile": "iobatch.httpd under attack: another client's latency, memory, descriptors",
}


def count(text: str) -> int:
    """Parse a count of at least 1."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def main() -> None:
    """Run the tables that the command line names."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="tables:\n" + "\n".join(f"  {name:8}{text}" for name, text in TABLES.items()),
    )
    parser.add_argument(
        "tables", nargs="*", metavar="TABLE", help="a table to print (default: all)"
    )
    parser.add_argument(
        "--turns", type=count, default=7, help="measure each method TURNS times (default: 7)"
    )
    parser.add_argument(
        "--smoke",
        action="store_true",
        help="only check that everything runs; the figures are meaningless",
    )
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="write plots there, as SVG")
    args = parser.parse_args()
    if unknown := set(args.tables) - set(TABLES):
        parser.error(f"no such table: {', '.join(sorted(unknown))}")
    options = Options(1 if args.smoke else args.turns, args.smoke, args.plots)
    if options.plots is not None:
        try:
            options.plots.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            parser.error(f"--plots: {exc}")
    # Exit by SystemExit, so that context managers end processes and remove folders.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    processors = os.sched_getaffinity(0)
    for name in args.tables or TABLES:
        os.sched_setaffinity(0, processors)  # the last table may have bound this process to one
        import_module(f"tests.bench.{name}").run(options)


if __name__ == "__main__":
    main()
