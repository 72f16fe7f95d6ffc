"""Measure the memory of iobatch.httpd and nginx for each connection of many that are not fast.

Idle connections: each has had one response of 1 KiB, and stays open. Slow readers: each requests a
file of 64 MiB over a connection with the smallest receive buffer, and reads up to 4 KiB of it each
second.

Each measurement has a server of its own, which has sent one small response before. Memory is the
proportional set size of its processes (Pss, proc_pid_smaps(5)): their own memory, without the
kernel's for sockets. The growth is divided by the number of connections: at the time when all of
them have received something, and 5 seconds later. It stays flat if a server's memory does not
depend on what clients leave unread. nginx reserves the memory of its 16,384 connections when it
starts, about 0.4 KiB for each, which is not in its figures.
"""

from __future__ import annotations

import time
from contextlib import ExitStack, contextmanager
from functools import partial
from http.client import HTTPConnection
from multiprocessing import Value
from random import Random
from typing import TYPE_CHECKING

from tests.bench.hostile_clients import Target, request, slow_readers
from tests.bench.httpd_processes import HOST, TIMEOUT, running
from tests.bench.httpd_servers import NGINX, OURS
from tests.bench.reader import READER, child_process, pin_to_processor, raise_descriptor_limit
from tests.bench.report import KIB, MIB, print_table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from tests.bench.httpd_processes import Program, Server
    from tests.bench.report import Options

    # Opens a number of connections to a server, and closes them on exit.
    Connections = Callable[[Server, int], AbstractContextManager[None]]

IDLE = 10_000
SLOW = 500
# Of a slow reader in a second.
READ_SIZE = 4 * KIB
# Between the two measurements of a server.
SECONDS = 5
# The goal: the most KiB for each connection, at both times.
MOST = 8


def print_memory(programs: Iterable[Program], home: Path, options: Options) -> None:
    """Print the table.

    Args:
        programs: the plain ones of iobatch.httpd and nginx are measured.
        home: the folder that prepare() has made.
        options: of the run.

    """
    pin_to_processor(READER)
    (home / "files" / "huge").write_bytes(Random(64).randbytes(64 * MIB))
    measured = [each for each in programs if each.setup == "plain" and each.name in {OURS, NGINX}]
    print_table(
        "Memory, KiB for each connection",
        ["connections", "server", "at first", f"{SECONDS} seconds later", "goal", "met"],
        memory_rows(measured, home, options),
    )


def memory_rows(
    programs: Sequence[Program], home: Path, options: Options
) -> Iterator[Sequence[str]]:
    """Yield a table row for each kind of connection and each server."""
    # iobatch.httpd uses at most half of its descriptors for connections.
    idle, slow = min(IDLE, raise_descriptor_limit() // 2), SLOW
    if options.smoke:
        idle = slow = 50
    for what, number, connections in (
        ("idle", idle, idle_connections),
        ("slow readers", slow, partial(slow_connections, home)),
    ):
        for program in programs:
            with running(program, home) as server:
                seconds = 0 if options.smoke else SECONDS
                growth = [each / KIB for each in measure(server, connections, number, seconds)]
            row = [f"{number:,} {what}", program.name, *(f"{each:.1f}" for each in growth)]
            if program.name == OURS:
                yield [*row, f"at most {MOST}", "yes" if max(growth) <= MOST else "no"]
            else:
                yield [*row, "", ""]


def measure(
    server: Server, connections: Connections, number: int, seconds: float
) -> tuple[float, float]:
    """Return the growth in bytes for each connection, at first and some seconds later."""
    get_small_file(server).close()
    before = server.memory()
    with connections(server, number):
        first = server.memory()
        time.sleep(seconds)
        later = server.memory()
        if server.descriptors() < number:
            raise RuntimeError(f"{server.name} has closed connections")
    return (first - before) / number, (later - before) / number


def get_small_file(server: Server) -> HTTPConnection:
    """Receive a whole response; return the connection, which stays open."""
    connection = HTTPConnection(HOST, server.port, timeout=TIMEOUT)
    connection.request("GET", "/small")
    connection.getresponse().read()
    return connection


@contextmanager
def idle_connections(server: Server, number: int) -> Iterator[None]:
    """Open connections that have had a response each."""
    with ExitStack() as stack:
        for _ in range(number):
            stack.callback(get_small_file(server).close)
        yield


@contextmanager
def slow_connections(home: Path, server: Server, number: int) -> Iterator[None]:
    """Open connections that read slowly, all of which have received the first bytes."""
    target = Target(server.port, home, Value("L"))
    with child_process(slow_readers, target, number, request("/huge"), READ_SIZE):
        deadline = time.monotonic() + TIMEOUT
        while target.actions.value < number:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{server.name} has not sent to {number} slow readers")
            time.sleep(0.02)
        yield
