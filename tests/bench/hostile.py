"""Measure iobatch.httpd under attack: the latency of ordinary clients, memory and descriptors.

One server process with default options runs on CPU 0, another serves TLS, and all clients run on
CPU 1. During each attack two ordinary clients get a file of 1 KiB, at most 50 times a second: one
on a persistent connection, the other on a new connection each time. The attack's process has a
lower priority than theirs, as they stand for clients on other machines. Rows named "none" have no
attack.

The latency is that of the whole request, and where the connection is new, of opening it too:
median, 99th percentile and maximum. A request that fails, or has another response than the file,
is counted as failed, and its time is not.

Memory is the server's resident set: before the attack, its peak, and after it. Descriptors are
counted likewise; the peak is the greatest of some counts. The memory of TCP is the kernel's, for
the buffers of all sockets of the machine, those of the attackers included. The settling time is
that from the end of the attack until the server has no more descriptors than before.

The goals are for each attack: the 99th percentiles stay under 50 ms, no request fails, the resident
set grows by at most 200 MiB, and no descriptor is left open.
"""

from __future__ import annotations

import os
import re
import resource
from contextlib import ExitStack
from functools import partial
from math import inf
from multiprocessing import Value
from pathlib import Path
from random import Random
from socket import create_connection
from statistics import median
from tempfile import TemporaryDirectory
from threading import Event, Thread
from time import monotonic, sleep
from typing import TYPE_CHECKING

from attrs import Factory, define, frozen

from tests.bench import hostile_clients as clients
from tests.bench.httpd_processes import HOST, TIMEOUT, Server, running
from tests.bench.httpd_servers import create_certificate, httpd_program
from tests.bench.reader import READER, child_process, pin_to_processor, raise_descriptor_limit
from tests.bench.report import KIB, MIB, print_environment, print_table
from tests.support.usage import descriptor_count, resident_bytes

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Callable, Iterator, Sequence

    from tests.bench.report import Options

SECONDS = 60
# Requests per second of each ordinary client.
RATE = 50
# Seconds between two counts of the server's descriptors.
SAMPLE = 0.1
# The most seconds to wait for the server to be as before.
SETTLE = 20
CONTENT = Random(1).randbytes(KIB)
REQUEST = clients.request("/small")
# The goals.
MAX_LATENCY = 0.05
MAX_GROWTH = 200 * MIB


@frozen
class Attack:
    """An attack; `run` loops until its process is killed."""

    name: str
    run: Callable[[clients.Target], None]
    secure: bool = False


def attacks(pages: int) -> Iterator[Attack]:
    """Yield the attacks.

    Args:
        pages: of the listing of the large directory.

    """
    coded = clients.request("/large.txt", "Accept-Encoding: gzip")
    orders = [f"{sign}{column}" for column in ("name", "size", "date") for sign in ("", "-")]
    views = [f"/many/?sort={each}&page={n}" for each in orders for n in range(1, pages + 1)]
    folders = [f"/links-{i}/" for i in range(clients.LINK_FOLDERS)]
    large = clients.request("/large")
    ranges = clients.many_ranges("/large")
    heads = clients.huge_heads()
    yield Attack("none", lambda _: sleep(3600))
    yield Attack("1000 slow heads", partial(clients.slow_heads, number=1000))
    yield Attack(
        "500 slow readers", partial(clients.slow_readers, number=500, asked=large, size=16)
    )
    yield Attack("connections, reset", clients.resets)
    yield Attack("pipelines, not read", partial(clients.unread_pipelines, number=64))
    yield Attack("pipelines, read", partial(clients.flood, number=4, payloads=[REQUEST * 1000]))
    yield Attack("range bombs", partial(clients.flood, number=4, payloads=ranges))
    yield Attack("large directory", partial(clients.ask_in_loop, number=4, paths=views))
    yield Attack("symbolic links", partial(clients.ask_in_loop, number=4, paths=folders))
    yield Attack(
        "gzip, 300 slow readers",
        partial(clients.slow_readers, number=300, asked=coded, size=16 * KIB),
    )
    yield Attack("gzip, 128 readers", partial(clients.flood, number=128, payloads=[coded]))
    yield Attack("huge heads", partial(clients.flood, number=8, payloads=heads))
    yield Attack("garbage", partial(clients.flood, number=8, payloads=clients.garbage()))
    yield Attack("none, TLS", lambda _: sleep(3600), secure=True)
    yield Attack(
        "half handshakes", partial(clients.half_handshakes, number=32, kept=500), secure=True
    )
    # The last, because it changes what the link to the served directory leads to.
    yield Attack("changing tree", partial(clients.change_tree, number=4))


def run(options: Options) -> None:
    """Print the table."""
    pin_to_processor(READER)
    raise_descriptor_limit()
    seconds = 0.3 if options.smoke else SECONDS
    entries = 2000 if options.smoke else 100_000
    with ExitStack() as stack:
        home = Path(stack.enter_context(TemporaryDirectory()))
        create_tree(home, entries)
        trust = create_certificate(home)
        servers = [
            stack.enter_context(running(program, home))
            for program in (httpd_program(), httpd_program("TLS"))
        ]
        print_environment(())
        print_table(
            f"hostile: {seconds} seconds of each attack, beside ordinary clients",
            [
                "attack",
                "actions/s",
                "kept connection, ms: median, 99 %, most",
                "new connection, ms: median, 99 %, most",
                "failed",
                "MiB resident: before, peak, after",
                "descriptors: before, peak, after",
                "MiB of TCP: before, peak, after",
                "settling, s",
                "goals met",
            ],
            (
                measure(each, servers[each.secure], home, trust, seconds)
                for each in attacks(entries // 1000)
            ),
        )


def create_tree(home: Path, entries: int) -> None:
    """Create the served directory."""
    root = home / "tree-a"
    root.mkdir()
    (home / "files").symlink_to("tree-a")
    (root / "small").write_bytes(CONTENT)
    (root / "large").write_bytes(Random(2).randbytes(16 * MIB))
    (root / "large.txt").write_bytes(b"the same line, again and again\n" * (MIB // 2))
    (root / "changing-a").mkdir()
    # The root is switched to this one and back.
    (home / "tree-b" / "changing-b").mkdir(parents=True)
    (home / "tree-b" / "small").write_bytes(CONTENT)
    many = root / "many"
    many.mkdir()
    for i in range(entries):
        (many / f"{i * 7919 % entries} entry").touch()
    deep = "/".join("d" * clients.DEPTH)
    (root / deep).mkdir(parents=True)
    for i in range(clients.LINK_FOLDERS):
        folder = root / f"links-{i}"
        folder.mkdir()
        for j in range(500):
            (folder / f"link-{j}").symlink_to(f"../{deep}")


@define
class Client:
    """An ordinary client, which gets a small file again and again."""

    _port: int
    # None: plain HTTP.
    _trust: ssl.SSLContext | None
    # It opens a new connection for each request.
    _anew: bool
    # Seconds of each request that succeeded.
    latencies: list[float] = Factory(list)
    failed: int = 0

    def run(self, end: Event) -> None:
        """Send requests until `end` is set."""
        sock = None
        for _ in clients.paced(RATE):
            if end.is_set():
                break
            start = monotonic()
            try:
                if sock is None:
                    sock = self._connect()
                self._get(sock)
            except OSError:
                self.failed += 1
            else:
                self.latencies.append(monotonic() - start)
                if not self._anew:
                    continue
            if sock is not None:
                sock.close()
                sock = None
        if sock is not None:
            sock.close()

    def _connect(self) -> socket.socket:
        sock = create_connection((HOST, self._port), TIMEOUT)
        if self._trust is not None:
            try:
                sock = self._trust.wrap_socket(sock, server_hostname=HOST)
            except OSError:
                sock.close()
                raise
        return sock

    def _get(self, sock: socket.socket) -> None:
        sock.sendall(REQUEST)
        received = b""
        while not received.endswith(CONTENT):
            data = sock.recv(4 * KIB)
            if not data or not received.startswith(b"HTTP/1.1 200 "[: len(received)]):
                raise ConnectionAbortedError
            received += data


@frozen
class Usage:
    """What a process uses."""

    resident: int  # bytes
    descriptors: int
    tcp: int  # bytes, of the whole machine

    @classmethod
    def of(cls, pid: int, key: str = "VmRSS") -> Usage:
        """Return the usage of a process."""
        pages = re.search(r"TCP: .* mem (\d+)", Path("/proc/net/sockstat").read_text())
        return cls(
            resident_bytes(pid, key),
            descriptor_count(pid),
            int(pages[1]) * resource.getpagesize() if pages else 0,
        )


def attack_server(attack: Attack, target: clients.Target) -> None:
    """Attack a server; this runs in a process of its own."""
    os.nice(10)
    attack.run(target)


def measure(
    attack: Attack, server: Server, home: Path, trust: ssl.SSLContext, seconds: float
) -> Sequence[str]:
    """Return the row of an attack."""
    target = clients.Target(server.port, home, Value("L"))
    before = Usage.of(server.pid)
    Path(f"/proc/{server.pid}/clear_refs").write_text("5")  # resets the peak (proc(5))
    tls = trust if server.secure else None
    ordinary = [Client(server.port, tls, anew) for anew in (False, True)]
    end = Event()
    samples = [before]
    with child_process(attack_server, attack, target):
        start = monotonic()
        threads = [Thread(target=each.run, args=[end]) for each in ordinary]
        for thread in threads:
            thread.start()
        while monotonic() < start + seconds:
            sleep(SAMPLE)
            samples.append(Usage.of(server.pid))
        end.set()
        for thread in threads:
            thread.join()
        actions = target.actions.value / (monotonic() - start)
    stopped = monotonic()
    while True:
        after = Usage.of(server.pid)
        settled = monotonic() - stopped
        if after.descriptors <= before.descriptors or settled > SETTLE:
            break
        sleep(SAMPLE)
    peak = Usage.of(server.pid, "VmHWM").resident
    failed = sum(each.failed for each in ordinary)
    latencies = [sorted(each.latencies) or [inf] for each in ordinary]
    percentiles = [each[-1 - len(each) // 100] for each in latencies]
    met = (
        max(percentiles) < MAX_LATENCY
        and not failed
        and peak - before.resident <= MAX_GROWTH
        and after.descriptors <= before.descriptors
    )
    return [
        attack.name,
        f"{actions:.0f}",
        *(
            f"{median(each) * 1e3:.2f}, {percentile * 1e3:.2f}, {each[-1] * 1e3:.2f}"
            for each, percentile in zip(latencies, percentiles, strict=True)
        ),
        f"{failed}",
        f"{before.resident / MIB:.0f}, {peak / MIB:.0f}, {after.resident / MIB:.0f}",
        f"{before.descriptors}, {max(each.descriptors for each in samples)}, {after.descriptors}",
        ", ".join(
            f"{nbytes / MIB:.0f}"
            for nbytes in (before.tcp, max(each.tcp for each in samples), after.tcp)
        ),
        f"{settled:.1f}",
        "yes" if met else "no",
    ]
