"""Measure asgi_server.py of the examples against uvicorn and granian: CPU and requests per second.

Each server has one worker, writes no access log, and runs the same Starlette application, whose
FileResponse sends one file repeatedly. wrk, connections, processors and CPU time are those of
httpd.py, whose docstring describes them.

Starlette calls os.stat() in a thread. Then it hands the path to a server that has the extension
http.response.pathsend, as asgi_server.py and granian do. For uvicorn it also opens, reads and
closes the file in a thread, 64 KiB at a time. The row "Starlette alone" is the CPU time of a call
of the application, by 64 tasks that send nothing.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from tests.bench.httpd import WORKLOADS, cpus, rates, server_rows
from tests.bench.httpd_processes import running
from tests.bench.httpd_servers import find_asgi_programs
from tests.bench.httpd_wrk import check_responses, check_wrk, measure, prepare
from tests.bench.report import format_spread, print_table, ratios

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.bench.httpd import Results
    from tests.bench.report import Options

# The goals, for 64 KiB: the highest ratio to uvicorn's CPU per request, and the lowest one to its
# requests per second.
CPU, RATE = 0.5, 3
CALLS = 100  # of each of the tasks without a server


def run(options: Options) -> None:
    """Print the tables."""
    check_wrk()
    found, versions = find_asgi_programs(options)
    plain = [each for each in WORKLOADS if each.setup == "plain"]
    with ExitStack() as stack:
        home = Path(stack.enter_context(TemporaryDirectory()))
        trust = prepare(home)
        servers = [stack.enter_context(running(program, home)) for program in found]
        check_responses(servers, plain, home, trust)
        workloads = plain[:1] if options.smoke else plain
        results = {each: measure(each, servers, options) for each in workloads}
        alone = ["Starlette alone"]
        for each in workloads:
            calls = [call_alone(home, each.file, options) for _ in range(options.turns)]
            alone.append(format_spread(calls, 1))
    print(f"\nMeasured: {', '.join(versions)}")
    head = ["server", *(each.name for each in workloads)]
    print_table("CPU per request, microseconds", head, [*server_rows(results, cpus, 1), alone])
    print_table("Requests per second", head, server_rows(results, rates, 0))
    goals = ["file", "ratio of", "measured", "goal", "met"]
    print_table("Goals", goals, goal_rows(results))


def call_alone(home: Path, file: str, options: Options) -> float:
    """Call the application without a server; return the CPU time of a call, in microseconds."""
    program = str(Path(__file__).with_name("asgi_app.py"))
    command = ["taskset", "-c", "0", sys.executable, program, file, str(options.rounds(CALLS))]
    environment = {**os.environ, "ASGI_FOLDER": f"{home}/files"}
    return float(subprocess.check_output(command, env=environment))


def goal_rows(results: Results) -> Iterator[Sequence[str]]:
    """Yield a table row for each goal, and for the same ratios of other files."""
    for workload, by_name in results.items():
        if "uvicorn" not in by_name:
            continue
        ours, theirs = by_name["asgi_server.py"], by_name["uvicorn"]
        cpu, rate = ratios(cpus(ours), cpus(theirs)), ratios(rates(ours), rates(theirs))
        has_goal = workload.file == "medium"
        for what, ratio, goal, met in (
            ("CPU", cpu, f"at most {CPU}", median(cpu) <= CPU),
            ("requests/s", rate, f"at least {RATE}", median(rate) >= RATE),
        ):
            yield (
                workload.name,
                f"{what}, asgi_server.py / uvicorn",
                format_spread(ratio),
                *((goal, "yes" if met else "no") if has_goal else ("", "")),
            )
