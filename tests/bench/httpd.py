"""Measure iobatch.httpd against nginx and Python servers: CPU, requests per second, memory.

wrk, on CPU 1, requests one file repeatedly from a server, on CPU 0, over 64 persistent connections.
The servers take turns; the other servers are idle meanwhile. Each server has one worker and serves
the same files; all bytes are compared before the first turn. nginx has sendfile, tcp_nopush and
practically no limit on requests per connection. It has an open_file_cache, which serves a file for
up to a minute without a look at the file system, except in the rows that say otherwise. granian
serves files in Rust, without Python code.

Over TLS nginx has the same certificate and the same cipher. With a log line each, both servers
write the Combined Log Format to a file, in no other workload. A turn ends when as many lines are in
the file as wrk counted responses. nginx writes each line by itself, which is its default;
iobatch.httpd writes many at once. With gzip, both servers compress the text again for each request.
Their compressors differ, so nginx has the level that makes bodies of about the same size; both
sizes are printed.

CPU is the user and system time of all processes and threads of a server, per request that wrk
counted. It includes opening and closing the connections: over TLS, 64 handshakes in each turn. As
wrk runs on the same machine, it also includes the kernel's work to deliver the bytes to wrk. Where
wrk takes more CPU than the server, wrk limits the requests per second, and these differ less
between the servers than CPU does.

The docstring of httpd_memory.py describes the table of memory.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from tests.bench.httpd_memory import print_memory
from tests.bench.httpd_processes import running
from tests.bench.httpd_servers import (
    GRANIAN,
    IN_PYTHON,
    NGINX,
    NGINX_UNCACHED,
    OURS,
    find_programs,
)
from tests.bench.httpd_wrk import (
    TEXT,
    TEXT_SIZE,
    Workload,
    check_responses,
    check_wrk,
    measure,
    prepare,
)
from tests.bench.plot import write_bar_chart
from tests.bench.reader import raise_descriptor_limit
from tests.bench.report import format_spread, print_table, ratios

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from tests.bench.httpd_wrk import Turn
    from tests.bench.report import Options

# Stands in a goal for the fastest of IN_PYTHON.
BEST_IN_PYTHON = "the best in Python"
WORKLOADS = [
    Workload(
        "1 KiB",
        "small",
        cpu={NGINX: 1.15, NGINX_UNCACHED: 0.85},
        rate={BEST_IN_PYTHON: 12, GRANIAN: 2.5},
    ),
    Workload(
        "64 KiB",
        "medium",
        cpu={NGINX: 1.15, NGINX_UNCACHED: 0.9},
        rate={BEST_IN_PYTHON: 8, GRANIAN: 2},
    ),
    Workload(
        "1 MiB",
        "large",
        cpu={NGINX: 1.05, NGINX_UNCACHED: 1.0},
        rate={BEST_IN_PYTHON: 1.5, GRANIAN: 1.5},
    ),
    Workload("1 MiB, TLS 1.3", "large", cpu={NGINX: 1.15}, setup="TLS"),
    Workload("1 KiB with a log line each", "small", cpu={NGINX: 1.3}, setup="log"),
    Workload(
        "100 KiB of text, gzip on the fly",
        TEXT,
        cpu={NGINX: 1.0},
        setup="gzip",
        fields={"Accept-Encoding": "gzip"},
    ),
]

Results = dict[Workload, dict[str, list["Turn"]]]


def run(options: Options) -> None:
    """Print the tables."""
    check_wrk()
    raise_descriptor_limit()  # nginx warns of its limit on connections otherwise
    found, versions = find_programs(options)
    with TemporaryDirectory() as folder:
        home = Path(folder)
        trust = prepare(home)
        with ExitStack() as stack:
            servers = [stack.enter_context(running(program, home)) for program in found]
            coded = check_responses(servers, WORKLOADS, home, trust)
            # wrk runs for at least a second, so a smoke run has a workload with few servers.
            workloads = WORKLOADS[-1:] if options.smoke else WORKLOADS
            results = {each: measure(each, servers, options) for each in workloads}
        print(f"\nMeasured: {', '.join(versions)}")
        head = ["server", *(each.name for each in workloads)]
        print_table("CPU per request, microseconds", head, server_rows(results, cpus, 1))
        print_table("Requests per second", head, server_rows(results, rates, 0))
        print_table("Goals", ["file", "ratio of", "measured", "goal", "met"], goal_rows(results))
        sizes = ", ".join(f"{size:,} by {name}" for name, size in coded.items())
        print(f"\nBytes of the {TEXT_SIZE:,} of text after gzip: {sizes}")
        print_memory(found, home, options)
    if options.plots is not None:
        groups = {
            each.name: {name: median(rates(turns)) for name, turns in by_name.items()}
            for each, by_name in results.items()
        }
        write_bar_chart(
            options.plots / "httpd.svg", "Requests per second: more is better", "/s", groups
        )


def cpus(turns: Iterable[Turn]) -> list[float]:
    """Return the CPU per request of each turn."""
    return [turn.cpu for turn in turns]


def rates(turns: Iterable[Turn]) -> list[float]:
    """Return the requests per second of each turn."""
    return [turn.rate for turn in turns]


def server_rows(
    results: Results, figure: Callable[[Iterable[Turn]], list[float]], digits: int
) -> Iterator[Sequence[str]]:
    """Yield a table row for each server."""
    for name in dict.fromkeys(name for by_name in results.values() for name in by_name):
        yield [
            name,
            *(
                format_spread(figure(by_name[name]), digits) if name in by_name else ""
                for by_name in results.values()
            ),
        ]


def goal_rows(results: Results) -> Iterator[Sequence[str]]:
    """Yield a table row for each goal whose servers were measured."""
    for workload, by_name in results.items():
        ours = by_name[OURS]
        for name, most in workload.cpu.items():
            if name in by_name:
                ratio = ratios(cpus(ours), cpus(by_name[name]))
                met = "yes" if median(ratio) <= most else "no"
                what = f"CPU, httpd / {name}"
                yield workload.name, what, format_spread(ratio), f"at most {most}", met
        for name, least in workload.rate.items():
            if rival := find_rival(name, by_name):
                ratio = ratios(rates(ours), rates(by_name[rival]))
                met = "yes" if median(ratio) >= least else "no"
                what = f"requests/s, httpd / {rival}"
                yield workload.name, what, format_spread(ratio), f"at least {least}", met


def find_rival(name: str, by_name: Mapping[str, Sequence[Turn]]) -> str | None:
    """Return the measured server that the name in a goal means; None: there is none."""
    names = IN_PYTHON if name == BEST_IN_PYTHON else [name]
    measured = [each for each in names if each in by_name]
    return max(measured, key=lambda each: median(rates(by_name[each])), default=None)
