"""Worker processes and their supervisor."""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from iobatch.httpd.workers import Supervisor, _Worker
from tests.support.batches import data
from tests.support.httpd import COMMAND, address_of, get, program, run_httpd, started_workers
from tests.support.sockets import PATIENCE

# Runs the program in a process whose second and fourth fork fail.
FAILING_FORK = """
import os, runpy, sys
calls, fork = [], os.fork
def failing():
    calls.append(1)
    if len(calls) in {2, 4}:
        raise BlockingIOError(11, "no more processes")
    return fork()
os.fork = failing
from iobatch.httpd import workers
workers.RESPAWN_DELAY = 0.01
runpy.run_module("iobatch.httpd", run_name="__main__", alter_sys=True)
"""

# Runs the program with a server that fails in each worker.
FAILING_SERVER = """
import runpy
def failing(self):
    raise ZeroDivisionError("unexpected")
from iobatch.httpd import workers
from iobatch.httpd.server import Server
workers.RESPAWN_DELAY = 0.01
Server.run = failing
runpy.run_module("iobatch.httpd", run_name="__main__", alter_sys=True)
"""

# Runs the program with threads that do nothing until one is waited for, and reports the number of
# threads at each fork.
LATE_THREADS = """
import os, runpy, sys, threading
from iobatch.httpd import output
output.PATIENCE_AT_END = 60
waited, fork, join, run = threading.Event(), os.fork, threading.Thread.join, threading.Thread.run
def reporting_fork():
    print("threads:", threading.active_count(), file=sys.stderr, flush=True)
    return fork()
def late_run(self):
    waited.wait(5)
    run(self)
def setting_join(self, timeout=None):
    waited.set()
    join(self, timeout)
os.fork, threading.Thread.run, threading.Thread.join = reporting_fork, late_run, setting_join
runpy.run_module("iobatch.httpd", run_name="__main__", alter_sys=True)
"""

DIED = "iobatch.httpd: a worker died; starting another one\n"


def test_workers_share_a_port_and_a_killed_one_is_replaced(site: Path) -> None:
    """A signal stops them all."""
    with program(site, "--workers", "3", stderr=subprocess.PIPE) as (process, url):
        address = address_of(url)
        for _ in range(20):
            assert get(address, "/1024").body == data(1024, seed=1024)
        before = started_workers(process, 3)
        second = run_httpd(site, "--workers", "2", "--port", str(address[1]))
        assert second.returncode == 1
        assert "Address already in use" in second.stderr
        os.kill(before[0], signal.SIGKILL)
        assert process.stderr is not None
        assert process.stderr.readline() == DIED
        process.terminate()
        assert process.wait(PATIENCE) == 0
        assert not any(Path(f"/proc/{pid}/cmdline").exists() for pid in before)


@pytest.mark.parametrize(
    "options", [(), ("--log", "common"), ("--bind", "::", "--auth", "u:p", "--quiet")], ids=" ".join
)
def test_workers_are_forked_when_the_first_lines_are_written(
    site: Path, options: tuple[str, ...]
) -> None:
    """A process with threads can't fork safely."""
    with subprocess.Popen(
        [sys.executable, "-c", LATE_THREADS, site, "--port", "0", "--workers", "2", *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        lines = [process.stderr.readline() for _ in range(3 if options else 2)]
        process.terminate()
        process.stderr.read()
        assert process.wait(PATIENCE) == 0
    assert lines[-2:] == ["threads: 1\n"] * 2


def test_line_that_the_supervisor_has_not_written_is_written_once(site: Path) -> None:
    """A reader that is slow, or a thread that has not had its turn, is no reason for a copy."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writing, b"x")
    os.set_blocking(writing, True)
    with subprocess.Popen(
        [*COMMAND, site, "--port", "0", "--workers", "2", "--log", "common"],
        stdout=subprocess.DEVNULL,
        stderr=writing,
    ) as process:
        os.close(writing)
        started_workers(process, 2)
        with os.fdopen(reading, "rb") as reader:
            received = reader.readline()  # the supervisor waits only a second for it at its end
            process.terminate()
            received += reader.read()
        assert received.count(b"Serving") == 1
        assert process.wait(PATIENCE) == 0


def test_signals_reach_a_worker_although_another_one_reads_none() -> None:
    signals, sender = socket.socketpair()
    supervisor = Supervisor([], signals, lambda *_: pytest.fail("a worker starts"), None)
    with sender, ExitStack() as stack:
        pairs = [socket.socketpair() for _ in range(2)]
        for ours, theirs in pairs:
            stack.enter_context(ours)
            stack.enter_context(theirs).settimeout(PATIENCE)
            supervisor._workers[ours] = _Worker(0, theirs)
        with suppress(BlockingIOError):
            while True:
                pairs[0][0].send(b"x", socket.MSG_DONTWAIT)
        sender.send(bytes([signal.SIGTERM]))
        supervisor._pass_on_signals()
        assert pairs[1][1].recv(9) == bytes([signal.SIGTERM])
    supervisor.close()


def test_worker_that_cannot_be_forked_is_tried_again_later(site: Path) -> None:
    """The other worker serves meanwhile."""
    with subprocess.Popen(
        [sys.executable, "-c", FAILING_FORK, site, "--port", "0", "--workers", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        match = re.search(r" on (\S+) \(", process.stdout.readline())
        assert match
        failure = "iobatch.httpd: can't start a worker: no more processes\n"
        assert process.stderr.readline() == failure
        os.kill(started_workers(process, 2)[0], signal.SIGKILL)
        assert process.stderr.readline() == DIED
        assert process.stderr.readline() == failure
        started_workers(process, 2)
        assert get(address_of(match[1]), "/1").status == 200
        process.terminate()
        assert process.wait(PATIENCE) == 0
        assert process.stderr.read() == ""


def test_workers_end_when_the_supervisor_is_killed(site: Path) -> None:
    with program(site, "--workers", "2", stderr=subprocess.DEVNULL) as (process, url):
        assert get(address_of(url), "/1").status == 200
        with ExitStack() as stack:
            # The descriptor of a process becomes readable when the process ends (pidfd_open(2)).
            fds = [os.pidfd_open(pid) for pid in started_workers(process, 2)]
            for fd in fds:
                stack.callback(os.close, fd)
            process.kill()
            for fd in fds:
                assert select.select([fd], [], [], PATIENCE)[0]


def test_exception_in_a_worker_is_printed_and_the_worker_replaced(site: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", FAILING_SERVER, site, "--port", "0", "--workers", "2"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        for expected in ("ZeroDivisionError: unexpected\n", DIED) * 3:
            while process.stderr.readline() != expected:
                assert process.poll() is None
        process.terminate()
        process.stderr.read()
        assert process.wait(PATIENCE) == 0
