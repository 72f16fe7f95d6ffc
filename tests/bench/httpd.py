"""Measure iobatch.httpd against nginx and Python servers: CPU time and requests per second.

wrk, on CPU 1, requests one file repeatedly from a server, on CPU 0, over 64 persistent connections.
The servers take turns; the other servers are idle meanwhile. Each server has one worker, serves the
same files and writes no access log; all bytes are compared before the first turn. nginx has
sendfile, tcp_nopush, an open_file_cache and practically no limit on requests per connection; over
TLS it has the same certificate and the same cipher. granian serves files in Rust, without Python
code.

CPU is the user and system time of all processes and threads of a server, per request that wrk
counted. It includes opening and closing the connections: over TLS, 64 handshakes in each turn. As
wrk runs on the same machine, it also includes the kernel's work to deliver the bytes to wrk. Where
wrk takes more CPU than the server, wrk limits the requests per second, and these differ less
between the servers than CPU does.
"""

from __future__ import annotations

import random
import re
import shutil
import subprocess
import sys
from contextlib import ExitStack
from functools import partial
from http.client import HTTPConnection, HTTPSConnection
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from attrs import frozen

from tests.bench.httpd_servers import (
    HOST,
    TIMEOUT,
    Server,
    create_certificate,
    find_programs,
    running,
)
from tests.bench.plot import write_bar_chart
from tests.bench.report import format_spread, print_table, ratios, run_in_turn

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from tests.bench.report import Options

CONNECTIONS = 64
SECONDS = 2


@frozen
class Workload:
    """A file to request, and the goals for it.

    Attributes:
        name: the name in the tables.
        size: in bytes; also the name of the file.
        cpu: the goal for the CPU per request: the highest ratio to nginx's.
        rate: the goal for the requests per second: the lowest ratio to each other Python server's.
        secure: request the file over TLS, and only from nginx and iobatch.httpd.

    """

    name: str
    size: int
    cpu: float
    rate: float = 0
    secure: bool = False


WORKLOADS = [
    Workload("1 KiB", 1 << 10, 1.6, 5),
    Workload("64 KiB", 64 << 10, 1.1, 4),
    Workload("1 MiB", 1 << 20, 1.0, 1.2),
    Workload("1 MiB, TLS 1.3", 1 << 20, 1.3, secure=True),
]


@frozen
class Turn:
    """The results of a server in one turn."""

    cpu: float  # microseconds per request
    rate: float  # requests per second


Results = dict[Workload, dict[str, list[Turn]]]


def run(options: Options) -> None:
    """Print the tables."""
    check_wrk()
    found, versions = find_programs(options)
    with ExitStack() as stack:
        home = Path(stack.enter_context(TemporaryDirectory()))
        trust = prepare(home)
        servers = [stack.enter_context(running(program, home)) for program in found]
        check_responses(servers, home, trust)
        # wrk runs for at least a second, so a smoke run has the workload with the fewest servers.
        workloads = WORKLOADS[-1:] if options.smoke else WORKLOADS
        results = {each: measure(each, servers, options) for each in workloads}
    print(f"\nMeasured: {', '.join(versions)}")
    head = ["server", *(each.name for each in workloads)]
    print_table("CPU per request, microseconds", head, server_rows(results, cpus, 1))
    print_table("Requests per second", head, server_rows(results, rates, 0))
    print_table("Goals", ["file", "ratio of", "measured", "goal", "met"], goal_rows(results))
    if options.plots is not None:
        groups = {
            each.name: {name: median(rates(turns)) for name, turns in by_name.items()}
            for each, by_name in results.items()
        }
        write_bar_chart(
            options.plots / "httpd.svg", "Requests per second: more is better", "/s", groups
        )


def check_wrk() -> None:
    """Exit if there is no wrk."""
    if shutil.which("wrk") is None:
        sys.exit("wrk is missing: apt-get install wrk")


def prepare(home: Path) -> ssl.SSLContext:
    """Create the files and a certificate; return a client context that trusts the certificate."""
    home.chmod(0o755)  # nginx, run as root, has a worker of another user
    (home / "files").mkdir()
    for size in {each.size for each in WORKLOADS}:
        (home / "files" / str(size)).write_bytes(random.Random(size).randbytes(size))
    return create_certificate(home)


def check_responses(servers: Iterable[Server], home: Path, trust: ssl.SSLContext) -> None:
    """Check that the servers send the exact bytes of all files, and use the same cipher."""
    ciphers = set()
    for server in servers:
        connection = HTTPConnection(HOST, server.port, timeout=TIMEOUT)
        if server.secure:
            connection = HTTPSConnection(HOST, server.port, timeout=TIMEOUT, context=trust)
        for file in (home / "files").iterdir():
            connection.request("GET", f"/{file.name}")
            if connection.getresponse().read() != file.read_bytes():
                raise RuntimeError(f"{server.name} sends other bytes than those of {file.name}")
        if server.secure:
            ciphers.add(connection.sock.cipher())
        connection.close()
    if len(ciphers) > 1:
        raise RuntimeError(f"the servers use different ciphers: {ciphers}")


def measure(
    workload: Workload, servers: Iterable[Server], options: Options
) -> dict[str, list[Turn]]:
    """Run wrk against the servers in turn."""
    seconds = 1 if options.smoke else SECONDS
    methods = {
        server.name: partial(run_wrk, server, workload.size, seconds)
        for server in servers
        if server.secure == workload.secure
    }
    return run_in_turn(methods, options.turns)


def run_wrk(server: Server, size: int, seconds: int) -> Turn:
    """Run wrk against a server."""
    scheme = "https" if server.secure else "http"
    command = f"wrk -t 1 -c {CONNECTIONS} -d {seconds} {scheme}://{HOST}:{server.port}/{size}"
    before = server.cpu()
    output = subprocess.check_output(["taskset", "-c", "1", *command.split()], text=True)
    spent = server.cpu() - before
    count = re.search(r"(\d+) requests in ", output)
    rate = re.search(r"Requests/sec: *([\d.]+)", output)
    # wrk reports failures as "Socket errors" and "Non-2xx or 3xx responses".
    if not count or not rate or "errors" in output or "Non-2xx" in output:
        raise RuntimeError(f"{server.name}, {command}\n{output}")
    return Turn(spent / int(count[1]) / 1000, float(rate[1]))


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
    """Yield a table row for each goal."""
    for workload, by_name in results.items():
        ours = by_name["iobatch.httpd"]
        if "nginx" in by_name:
            ratio = ratios(cpus(ours), cpus(by_name["nginx"]))
            met = "yes" if median(ratio) <= workload.cpu else "no"
            yield (
                workload.name,
                "CPU, httpd / nginx",
                format_spread(ratio),
                f"at most {workload.cpu}",
                met,
            )
        peers = {name: rates(by_name[name]) for name in by_name.keys() - {"iobatch.httpd", "nginx"}}
        # The fastest of all, and the fastest of those that serve files in Python.
        rivals = (peers.keys(), peers.keys() - {"granian"})
        best = [max(names, key=lambda name: median(peers[name])) for names in rivals if names]
        for name in dict.fromkeys(best):
            ratio = ratios(rates(ours), peers[name])
            met = "yes" if median(ratio) >= workload.rate else "no"
            what = f"requests/s, httpd / {name}"
            yield workload.name, what, format_spread(ratio), f"at least {workload.rate}", met
