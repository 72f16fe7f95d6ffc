"""Measure examples/httpd against nginx and the Python servers: CPU and requests per second.

wrk, on CPU 1, asks a server, on CPU 0, for one file again and again, over 64 connections that stay
open. The servers take turns, and those that are not asked sleep meanwhile. Each has one worker,
serves the same files and writes no access log; each byte was compared first. nginx has sendfile,
tcp_nopush, an open_file_cache and no bound on requests per connection; over TLS it has our
certificate and our cipher. granian serves files in Rust, and no Python code runs meanwhile.

CPU is the time of all processes and threads of a server, user and system, for each request that wrk
has counted. It includes the beginning and the end of the connections: over TLS, 64 handshakes in
each turn. It includes the kernel's work to hand the bytes over to wrk, as all this is one machine.
Where wrk needs longer than the server does, requests per second show the servers closer to each
other than they are, and CPU is what tells.
"""

from __future__ import annotations

import random
import re
import shutil
import ssl
import subprocess
import sys
from contextlib import ExitStack
from functools import partial
from http.client import HTTPConnection, HTTPSConnection
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import trustme
from attrs import frozen

from tests.bench.httpd_servers import HOST, PATIENCE, Server, programs, serving
from tests.bench.plot import bars
from tests.bench.report import in_turn, ratios, spread, table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from tests.bench.report import Options

CONNECTIONS = 64
SECONDS = 2


@frozen
class Work:
    """A file to be asked for, and what is to be reached.

    Attributes:
        name: what the tables call it.
        size: in bytes; it is the file's name too.
        cpu: CPU per request, at most so many times nginx's.
        rate: requests per second, at least so many times those of any other Python server.
        secure: it is asked for over TLS, and only of nginx and ours.

    """

    name: str
    size: int
    cpu: float
    rate: float = 0
    secure: bool = False


WORK = [
    Work("1 KiB", 1 << 10, 1.6, 5),
    Work("64 KiB", 64 << 10, 1.1, 4),
    Work("1 MiB", 1 << 20, 1.0, 1.2),
    Work("1 MiB, TLS 1.3", 1 << 20, 1.3, secure=True),
]


@frozen
class Turn:
    """What a turn of a server gave."""

    cpu: float  # microseconds per request
    rate: float  # requests per second


Results = dict[Work, dict[str, list[Turn]]]


def run(options: Options) -> None:
    """Print the tables."""
    if shutil.which("wrk") is None:
        sys.exit("wrk is missing")
    found, versions = programs(options)
    with ExitStack() as stack:
        home = Path(stack.enter_context(TemporaryDirectory()))
        trust = prepare(home)
        servers = [stack.enter_context(serving(program, home)) for program in found]
        check(servers, home, trust)
        # wrk takes a second at least, so the fewest servers stand for all.
        work = WORK[-1:] if options.smoke else WORK
        results = {each: measure(each, servers, options) for each in work}
    print(f"\nMeasured: {', '.join(versions)}")
    head = ["server", *(each.name for each in work)]
    table("CPU per request, microseconds", head, rows(results, cpus, 1))
    table("Requests per second", head, rows(results, rates, 0))
    table("Goals", ["file", "what", "measured", "goal", "met"], goals(results))
    if options.plots is not None:
        groups = {
            each.name: {name: median(rates(turns)) for name, turns in by_name.items()}
            for each, by_name in results.items()
        }
        bars(options.plots / "httpd.svg", "Requests per second: more is better", "/s", groups)


def prepare(home: Path) -> ssl.SSLContext:
    """Make the files and a certificate; return what clients need to trust it."""
    home.chmod(0o755)  # if this is root, nginx's worker is somebody else
    (home / "files").mkdir()
    for size in {each.size for each in WORK}:
        (home / "files" / str(size)).write_bytes(random.Random(size).randbytes(size))
    authority = trustme.CA()
    certificate = authority.issue_cert(HOST)
    certificate.private_key_pem.write_to_path(home / "key.pem")
    for pem in certificate.cert_chain_pems:
        pem.write_to_path(home / "cert.pem", append=True)
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    return trust


def check(servers: Iterable[Server], home: Path, trust: ssl.SSLContext) -> None:
    """Compare what the servers send, byte by byte, and how it is encrypted."""
    ciphers = set()
    for server in servers:
        connection = HTTPConnection(HOST, server.port, timeout=PATIENCE)
        if server.secure:
            connection = HTTPSConnection(HOST, server.port, timeout=PATIENCE, context=trust)
        for file in (home / "files").iterdir():
            connection.request("GET", f"/{file.name}")
            if connection.getresponse().read() != file.read_bytes():
                raise RuntimeError(f"{server.name} doesn't send {file.name} as it is")
        if server.secure:
            ciphers.add(connection.sock.cipher())
        connection.close()
    if len(ciphers) > 1:
        raise RuntimeError(f"they don't encrypt alike: {ciphers}")


def measure(work: Work, servers: Iterable[Server], options: Options) -> dict[str, list[Turn]]:
    """Let wrk ask the servers in turn."""
    seconds = 1 if options.smoke else SECONDS
    ways = {
        server.name: partial(ask, server, work.size, seconds)
        for server in servers
        if server.secure == work.secure
    }
    return in_turn(ways, options.turns)


def ask(server: Server, size: int, seconds: int) -> Turn:
    """Let wrk ask a server for a file."""
    scheme = "https" if server.secure else "http"
    command = f"wrk -t 1 -c {CONNECTIONS} -d {seconds} {scheme}://{HOST}:{server.port}/{size}"
    before = server.cpu()
    output = subprocess.check_output(["taskset", "-c", "1", *command.split()], text=True)
    spent = server.cpu() - before
    count = re.search(r"(\d+) requests in ", output)
    rate = re.search(r"Requests/sec: *([\d.]+)", output)
    # It names what failed: "Socket errors", "Non-2xx or 3xx responses".
    if not count or not rate or "errors" in output or "Non-2xx" in output:
        raise RuntimeError(f"{server.name}, {command}\n{output}")
    return Turn(spent / int(count[1]) / 1000, float(rate[1]))


def cpus(turns: Iterable[Turn]) -> list[float]:
    """Return the CPU per request of each turn."""
    return [turn.cpu for turn in turns]


def rates(turns: Iterable[Turn]) -> list[float]:
    """Return the requests per second of each turn."""
    return [turn.rate for turn in turns]


def rows(
    results: Results, figure: Callable[[Iterable[Turn]], list[float]], digits: int
) -> Iterator[Sequence[str]]:
    """Give a row for each server."""
    for name in dict.fromkeys(name for by_name in results.values() for name in by_name):
        yield [
            name,
            *(
                spread(figure(by_name[name]), digits) if name in by_name else ""
                for by_name in results.values()
            ),
        ]


def goals(results: Results) -> Iterator[Sequence[str]]:
    """Give a row for each goal."""
    for work, by_name in results.items():
        ours = by_name["httpd"]
        if "nginx" in by_name:
            ratio = ratios(cpus(ours), cpus(by_name["nginx"]))
            met = "yes" if median(ratio) <= work.cpu else "no"
            yield work.name, "CPU, httpd / nginx", spread(ratio), f"at most {work.cpu}", met
        peers = {name: rates(by_name[name]) for name in by_name.keys() - {"httpd", "nginx"}}
        # The best of all, and the best of those that do it in Python.
        rivals = (peers.keys(), peers.keys() - {"granian"})
        best = [max(names, key=lambda name: median(peers[name])) for names in rivals if names]
        for name in dict.fromkeys(best):
            ratio = ratios(rates(ours), peers[name])
            met = "yes" if median(ratio) >= work.rate else "no"
            what = f"requests/s, httpd / {name}"
            yield work.name, what, spread(ratio), f"at least {work.rate}", met
