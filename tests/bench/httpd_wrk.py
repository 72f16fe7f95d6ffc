"""The workloads of httpd and asgi: their files, the check of the responses, and runs of wrk."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import subprocess
import sys
import textwrap
import time
from functools import partial
from http.client import HTTPConnection, HTTPSConnection
from random import Random
from string import ascii_lowercase
from typing import TYPE_CHECKING

from attrs import field, frozen

from tests.bench.httpd_processes import HOST, TIMEOUT
from tests.bench.httpd_servers import create_certificate
from tests.bench.report import KIB, MIB, run_in_turn

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from tests.bench.httpd_processes import Server, Setup
    from tests.bench.report import Options

CONNECTIONS = 64
SECONDS = 2
# Seconds after a run for a server to write the rest of its log.
LOG_TIMEOUT = 5
# The files of random bytes, and their sizes.
RANDOM_FILES = {"small": KIB, "medium": 64 * KIB, "large": MIB}
TEXT = "text.txt"
TEXT_SIZE = 100 * KIB


@frozen(eq=False)
class Workload:
    """A file that wrk requests, and the goals for this.

    Attributes:
        name: the name in the tables.
        file: the file's name in the served folder.
        cpu: the goals for the CPU per request: the highest ratio to that of each named server.
        rate: the goals for the requests per second: the lowest ratio to those of each named server.
        setup: only the servers with this setup are measured.
        fields: of the request's header.

    """

    name: str
    file: str
    cpu: Mapping[str, float]
    rate: Mapping[str, float] = field(factory=dict[str, float])
    setup: Setup = "plain"
    fields: Mapping[str, str] = field(factory=dict[str, str])


@frozen
class Turn:
    """The results of a server in one turn."""

    cpu: float  # microseconds per request
    rate: float  # requests per second


def check_wrk() -> None:
    """Exit if there is no wrk."""
    if shutil.which("wrk") is None:
        sys.exit("wrk is missing: apt-get install wrk")


def prepare(home: Path) -> ssl.SSLContext:
    """Create the files and a certificate; return a client context that trusts the certificate."""
    home.chmod(0o755)  # nginx, run as root, has a worker of another user
    files = home / "files"
    files.mkdir()
    for name, size in RANDOM_FILES.items():
        (files / name).write_bytes(Random(size).randbytes(size))
    (files / TEXT).write_text(create_text(TEXT_SIZE))
    return create_certificate(home)


def create_text(size: int) -> str:
    """Return lines of words that are as frequent as those of a natural language (Zipf's law).

    gzip makes about 40 % of it, as of English prose.
    """
    random = Random(size)
    words = ["".join(random.choices(ascii_lowercase, k=random.randint(2, 9))) for _ in range(5000)]
    weights = [1 / rank for rank in range(1, len(words) + 1)]
    return textwrap.fill(" ".join(random.choices(words, weights, k=size // 4)), 72)[:size]


def check_responses(
    servers: Iterable[Server], workloads: Iterable[Workload], home: Path, trust: ssl.SSLContext
) -> dict[str, int]:
    """Check that the servers send the exact bytes of the workloads' files, by the same cipher.

    Returns:
        The bytes of the coded body of each server that compresses.

    """
    ciphers = set()
    coded: dict[str, int] = {}
    for server in servers:
        connection = HTTPConnection(HOST, server.port, timeout=TIMEOUT)
        if server.secure:
            connection = HTTPSConnection(HOST, server.port, timeout=TIMEOUT, context=trust)
        for workload in workloads:
            if workload.setup != server.setup:
                continue
            connection.request("GET", f"/{workload.file}", headers=dict(workload.fields))
            response = connection.getresponse()
            body = response.read()
            if server.setup == "gzip":
                coded[server.name] = len(body)
                body = gzip.decompress(body)
            if body != (home / "files" / workload.file).read_bytes():
                raise RuntimeError(f"{server.name} sends other bytes than those of {workload.file}")
        if server.secure:
            ciphers.add(connection.sock.cipher())
        connection.close()
    if len(ciphers) > 1:
        raise RuntimeError(f"the servers use different ciphers: {ciphers}")
    return coded


def measure(
    workload: Workload, servers: Iterable[Server], options: Options
) -> dict[str, list[Turn]]:
    """Run wrk against the servers in turn."""
    seconds = 1 if options.smoke else SECONDS  # the least that wrk takes
    methods = {
        server.name: partial(run_wrk, server, workload, seconds)
        for server in servers
        if server.setup == workload.setup
    }
    return run_in_turn(methods, options.turns)


def run_wrk(server: Server, workload: Workload, seconds: int) -> Turn:
    """Run wrk against a server."""
    scheme = "https" if server.secure else "http"
    url = f"{scheme}://{HOST}:{server.port}/{workload.file}"
    # Compressing for all connections may keep one of them waiting for more than 2 s, wrk's default.
    options = f"-t 1 -c {CONNECTIONS} -d {seconds} --timeout {TIMEOUT}"
    command = f"taskset -c 1 wrk {options} {url}".split()
    for name, value in workload.fields.items():
        command += ["-H", f"{name}: {value}"]
    os.truncate(server.output, 0)
    before = server.cpu()
    output = subprocess.check_output(command, text=True)
    count = re.search(r"(\d+) requests in ", output)
    rate = re.search(r"Requests/sec: *([\d.]+)", output)
    # wrk reports failures as "Socket errors" and "Non-2xx or 3xx responses".
    if not count or not rate or "errors" in output or "Non-2xx" in output:
        raise RuntimeError(f"{server.name}, {command}\n{output}")
    requests = int(count[1])
    if server.setup == "log":
        await_log(server, requests)
    return Turn((server.cpu() - before) / requests / 1000, float(rate[1]))


def await_log(server: Server, lines: int) -> None:
    """Wait until a server, which may write its log in large pieces, has written enough lines."""
    deadline = time.monotonic() + LOG_TIMEOUT
    while (written := server.output.read_bytes().count(b"\n")) < lines:
        if time.monotonic() > deadline:
            raise RuntimeError(f"{server.name} has logged {written} of {lines} responses")
        time.sleep(0.05)
