"""The file server, as a program, among hostile clients and faults of the machine."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from contextlib import ExitStack, contextmanager
from random import Random
from select import select
from signal import SIGABRT, SIGUSR1
from threading import Condition, Thread
from time import monotonic
from typing import TYPE_CHECKING, Any

from attrs import Factory, define, field, frozen

from tests.soak.clients import Client
from tests.soak.faults import Faults
from tests.soak.flatness import Flatness, Sample
from tests.soak.site import STEADY, Site
from tests.support.httpd import address_of, children
from tests.support.programs import ROOT, UNMEASURED, environment, open_files
from tests.support.sockets import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from tests.support.httpd import Keys

CLIENTS = 4
# The actions of clients between two faults, and the seconds after which the next fault comes in any
# case: clients may wait for descriptors.
ACTIONS_OF_A_FAULT = 12
FAULT_DELAY = 0.3
OBSERVED = ("-m", "tests.soak.observed")


@frozen
class Setup:
    """A server's options."""

    name: str
    workers: int = 1
    secure: bool = False
    options: Sequence[str] = ()


SETUPS = (
    Setup("httpd, one worker"),
    Setup("httpd, two workers, TLS", 2, secure=True, options=["--log", "combined"]),
)


@define
class Soak:
    """A running server, its clients, and the samples of its processes."""

    setup: Setup
    process: subprocess.Popen[str]
    address: tuple[str, int]
    reports: int
    log: Path
    clients: Sequence[Client]
    errors: list[str] = Factory(list)
    # What the clients received and which faults were caused.
    seen: Counter[str] = Factory(Counter)
    flatness: dict[int, Flatness] = Factory(dict)
    faults: Faults = field(init=False)
    _condition: Condition = Factory(Condition)
    actions: int = 0
    # The number of pauses that each process has reported.
    _pauses: dict[int, int] = Factory(dict)
    _failures: list[BaseException] = Factory(list)

    def __attrs_post_init__(self) -> None:
        self._processes()
        self.faults = Faults(self.process, self.log, Random(0), self.seen)

    def cycle(self, actions: int) -> None:
        """Let the clients act and faults come, and take a sample when all is quiet."""
        end = self.actions + actions
        threads = [Thread(target=self._run, args=[client, end]) for client in self.clients]
        for thread in threads:
            thread.start()
        with self._condition:
            while self.actions < end:
                next_fault = min(end, self.actions + ACTIONS_OF_A_FAULT)
                self._condition.wait_for(lambda: self.actions >= next_fault, FAULT_DELAY)  # noqa: B023
                self.faults.cause()
        self.faults.end()
        for thread in threads:
            thread.join()
        for client in self.clients:
            client.close()
            self.seen += client.seen
            client.seen.clear()
        if self._failures:
            raise self._failures[0]
        assert self.process.poll() is None, f"the server has ended: {self.errors}"
        self._processes()
        self.faults.restore()  # also for a worker that was started meanwhile
        self._wait_for_log()
        self.clients[0].get_steady()
        self._take_samples(actions)
        assert f"GET {STEADY} " in self.log.read_text(), "the log is not written any more"

    def _processes(self) -> list[int]:
        """Return the processes of the server, when there are as many as there should be."""
        deadline = monotonic() + PATIENCE
        while True:
            pids = [self.process.pid, *sorted(children(self.process.pid))]
            if len(pids) == 1 + self.setup.workers * (self.setup.workers > 1):
                return pids
            assert monotonic() < deadline, f"the server has the processes {pids}"
            os.sched_yield()

    def _wait_for_log(self) -> None:
        """Wait until all processes have opened the new log."""
        deadline = monotonic() + PATIENCE
        while not all(self.log in open_files(pid) for pid in self._processes()):
            assert monotonic() < deadline, f"the log is not open: {self.errors}"
            os.sched_yield()

    def _run(self, client: Client, end: int) -> None:
        """Act until all clients together have acted often enough."""
        try:
            while self.actions < end:
                client.act()
                with self._condition:
                    self.actions += 1
                    self._condition.notify_all()
        except BaseException as exc:  # noqa: BLE001  # the main thread raises it
            self._failures.append(exc)
            with self._condition:
                self.actions = max(self.actions, end)

    def _take_samples(self, actions: int) -> None:
        for pid in self._processes():
            taken = self._idle_sample(pid)
            if pid in self.flatness:
                self.flatness[pid].add(taken, actions)
            else:
                self.flatness[pid] = Flatness(taken)

    def _idle_sample(self, pid: int) -> Sample:
        """Return a sample of a process as soon as it has nothing to do."""
        deadline = monotonic() + PATIENCE
        while True:
            report = self._report(pid)
            taken = Sample(**report["sample"])
            if report["idle"] and taken.counts["threads"] == 1:
                self.seen["accept paused"] += report["pauses"] - self._pauses.get(pid, 0)
                self._pauses[pid] = report["pauses"]
                return taken
            assert monotonic() < deadline, f"the server is not idle: {report}"

    def _report(self, pid: int) -> dict[str, Any]:
        os.kill(pid, SIGUSR1)
        line = b""
        while not line.endswith(b"\n"):
            assert select([self.reports], [], [], PATIENCE)[0], f"process {pid} does not report"
            line += os.read(self.reports, 1 << 16)
        found: dict[str, Any] = json.loads(line)
        return found

    def growth(self) -> list[str]:
        """Return a description of everything that is not flat, in any process."""
        return [each for flatness in self.flatness.values() for each in flatness.growth()]


@contextmanager
def soaking(
    setup: Setup, folder: Path, keys: Keys, program: Sequence[str] = OBSERVED
) -> Iterator[Soak]:
    """Run a server, and stop it at the end, when all that it reported is expected."""
    site = Site(folder / "site", Random(setup.name))
    log = folder / "log"
    options = ["--workers", str(setup.workers), "--log-file", str(log), *setup.options]
    trust = None
    if setup.secure:
        options += ["--tls", str(keys.certificate), str(keys.key)]
        trust = keys.client
    with ExitStack() as stack:
        reports, reporting = os.pipe()
        stack.callback(os.close, reports)
        process = stack.enter_context(
            subprocess.Popen(
                [sys.executable, *program, str(reporting), str(site.root), "--port", "0", *options],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                pass_fds=[reporting],
                env=environment(**UNMEASURED),
                cwd=ROOT,
            )
        )
        stack.callback(process.terminate)
        os.close(reporting)
        assert process.stdout is not None
        match = re.search(r" on (\S+) \(", process.stdout.readline())
        assert match
        address = address_of(match[1])
        clients = [Client(address, site, Random(i), trust) for i in range(CLIENTS)]
        soak = Soak(setup, process, address, reports, log, clients)
        assert process.stderr is not None
        listener = Thread(target=soak.errors.extend, args=[process.stderr])
        listener.start()
        stack.callback(listener.join)
        stack.callback(stop, process)
        yield soak
    assert process.returncode == 0, soak.errors
    unexpected = [line for line in soak.errors if not EXPECTED.fullmatch(line)]
    assert not unexpected, "".join(unexpected)


def stop(process: subprocess.Popen[str]) -> None:
    """Stop the server; if it does not, have it report where it is, and fail."""
    pids = [*children(process.pid), process.pid]
    process.terminate()
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        for pid in pids:
            os.kill(pid, SIGABRT)  # faulthandler writes the stack
        raise


# What the server may report.
EXPECTED = re.compile(
    "iobatch.httpd: ("
    "a worker died; starting another one"
    "|can't start a worker: Too many open files"
    "|can't wait for a connection, and close it: Too many open files"
    "|.*/log: Too many open files; the log goes on in the old file"
    "|waiting for .*"
    ")\n"
)


def soak_server(
    setup: Setup,
    folder: Path,
    keys: Keys,
    *,
    actions: int,
    cycles: int,
    late: Callable[[], bool] = bool,
    program: Sequence[str] = OBSERVED,
) -> Soak:
    """Run a server through some cycles, of which the first one is a warm-up."""
    with soaking(setup, folder, keys, program) as soak:
        for _ in range(1 + cycles):
            soak.cycle(actions)
            if late():
                break
    return soak
