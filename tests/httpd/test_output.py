"""Output that nobody reads, or that can't be written: the log and the diagnostics."""

from __future__ import annotations

import errno
import os
import re
import signal
import socket
import subprocess
import sys
from threading import Event, Thread
from typing import TYPE_CHECKING

import pytest

from iobatch.httpd import output
from iobatch.httpd.output import MAX_WAITING, Output, open_log, report
from tests.support.httpd import SMALL, address_of, children, exchange, get, program, started_workers
from tests.support.sockets import PATIENCE, receive, receive_all

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# A request whose line in the combined format has more than 3 KiB.
LONG = b"GET /%s HTTP/1.1\r\nHost: x\r\nReferer: %s\r\nUser-Agent: %s\r\n\r\n" % (
    (b"x" * 2000,) * 3
)

# Runs the program with connections that fail.
FAILING_CONNECTIONS = """
import runpy
def failing(*args):
    raise ZeroDivisionError("unexpected")
from iobatch.httpd.connection import Connection
Connection._send = failing
runpy.run_module("iobatch.httpd", run_name="__main__", alter_sys=True)
"""


@pytest.fixture(name="unread", params=["pipe", "terminal", "socket"])
def open_unread(request: pytest.FixtureRequest) -> Iterator[int]:
    """Give the blocking descriptor of an output that nobody reads."""
    if request.param == "socket":
        ours, theirs = socket.socketpair()
        fds = ours.detach(), theirs.detach()
    else:
        fds = os.pipe() if request.param == "pipe" else os.openpty()
    yield fds[1]
    for fd in fds:
        os.close(fd)


def wait_until_written(out: Output) -> None:
    while out:
        out.finish()


def test_server_whose_log_nobody_reads_serves_and_can_be_stopped(site: Path, unread: int) -> None:
    """Lines are lost, and the open file stays blocking for the others that share it."""
    with program(site, "--log", "combined", stdout=unread) as (process, url):
        address = address_of(url)
        for _ in range(10):
            assert exchange(address, LONG * 50).count(b"HTTP/1.1 404") == 50
        process.terminate()
        assert process.wait(PATIENCE) == 0
    assert os.get_blocking(unread)


def test_server_whose_diagnostics_nobody_reads_serves_and_can_be_stopped(
    site: Path, unread: int
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", FAILING_CONNECTIONS, site, "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=unread,
        text=True,
    ) as process:
        assert process.stdout is not None
        match = re.search(r" on (\S+) \(", process.stdout.readline())
        assert match
        for _ in range(500):
            assert exchange(address_of(match[1]), SMALL) == b""
        process.terminate()
        assert process.wait(PATIENCE) == 0


def test_workers_are_replaced_when_no_diagnostic_can_be_written(site: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with program(site, "--workers", "2", stderr=writing) as (process, url):
        for _ in "12":
            before = started_workers(process, 2)
            os.kill(before[0], signal.SIGKILL)
            while len(children(process.pid)) < 2 or before[0] in children(process.pid):
                assert process.poll() is None
                os.sched_yield()
        assert get(address_of(url), "/1").status == 200
        process.terminate()
        assert process.wait(PATIENCE) == 0
    os.close(writing)


def test_unwritable_output_loses_what_waits_and_takes_what_comes_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A disk is full for a while."""
    reading, writing = os.pipe()
    write = os.write
    script: list[int | OSError] = [OSError(errno.ENOSPC, ""), 3, OSError(errno.ENOSPC, "")]

    def scripted(fd: int, content: bytes) -> int:
        action = script.pop(0) if script else len(content)
        if isinstance(action, OSError):
            raise action
        return write(fd, content[:action])

    monkeypatch.setattr(os, "write", scripted)
    out = Output(writing)
    out.write(b"lost\n")
    out.finish()
    assert not out
    out.write(b"a line that is cut and completed\n")
    out.finish()
    out.write(b"the next line\n")
    wait_until_written(out)
    os.close(writing)
    assert receive(reading, 47) == b"a line that is cut and completed\nthe next line\n"
    os.close(reading)


@pytest.mark.parametrize("accepted", [0, 3])
def test_reopened_output_loses_only_what_the_old_file_does_not_take(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, accepted: int
) -> None:
    """The rest of a line that is cut in the old file is not written to the new one."""
    write = os.write
    path = tmp_path / "log"
    full = True

    def scripted(fd: int, content: bytes) -> int:
        if full:
            if content.startswith(b"cut") and accepted:
                return write(fd, content[:accepted])
            raise OSError(errno.ENOSPC, "")
        return write(fd, content)

    monkeypatch.setattr(os, "write", scripted)
    out = Output(open_log(os.fspath(path)), os.fspath(path))
    out.write(b"cut line\n")
    out.finish()
    out.write(b"lost\n")
    path.rename(tmp_path / "old")
    with monkeypatch.context() as patch:
        patch.setattr(Thread, "start", lambda self: None)  # nothing is written before the last line
        out.reopen()
        out.write(b"new\n")
    opened = open_log

    def make_room(path: str) -> int:
        nonlocal full
        full = False
        return opened(path)

    monkeypatch.setattr(output, "open_log", make_room)
    wait_until_written(out)
    assert (tmp_path / "old").read_bytes() == b"cut"[:accepted]
    assert path.read_bytes() == b"new\n"
    os.close(out._fd)


def test_output_that_cannot_be_opened_anew_keeps_its_file(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    path = os.fspath(folder / "log")
    out = Output(open_log(path), path)
    out.write(b"before\n")
    folder.rename(tmp_path / "renamed")
    out.reopen()
    out.write(b"after\n")
    wait_until_written(out)
    assert (tmp_path / "renamed" / "log").read_bytes() == b"before\nafter\n"
    wait_until_written(output.STDERR)
    reason = "No such file or directory; the log goes on in the old file"
    assert capfd.readouterr().err == f"iobatch.httpd: {path}: {reason}\n"
    os.close(out._fd)


def test_slow_reader_gets_what_waits_in_order_and_the_rest_is_lost() -> None:
    ours, theirs = socket.socketpair()
    out = Output(ours.fileno())
    for i in range(10 * MAX_WAITING):
        out.write(b"%01024d" % i)
    received: list[bytes] = []
    with ours, theirs:
        reader = Thread(target=lambda: received.append(receive_all(theirs)))
        reader.start()
        wait_until_written(out)
        ours.shutdown(socket.SHUT_WR)
        reader.join(PATIENCE)
    numbers = [int(received[0][i : i + 1024]) for i in range(0, len(received[0]), 1024)]
    assert numbers[:MAX_WAITING] == list(range(MAX_WAITING))
    assert numbers == sorted(set(numbers))
    assert MAX_WAITING <= len(numbers) < 10 * MAX_WAITING


def test_terminal_that_another_program_made_non_blocking_gets_everything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It accepts writes in part."""
    full = Event()
    monkeypatch.setattr(output, "sleep", lambda _: full.set())
    reading, writing = os.openpty()
    os.set_blocking(writing, False)
    out = Output(writing)
    for i in range(100):
        out.write(b"%01000d\n" % i)
    assert full.wait(PATIENCE)
    received = receive(reading, 100 * 1002)
    wait_until_written(out)
    os.close(writing)
    os.close(reading)
    assert [int(line) for line in received.splitlines()] == list(range(100))


def test_piece_that_is_added_while_the_thread_ends_is_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The thread has looked for more, and is still alive."""
    ending, ended = Event(), Event()
    run = Thread.run

    def end_late(self: Thread) -> None:
        run(self)
        ending.set()
        assert ended.wait(PATIENCE)

    monkeypatch.setattr(Thread, "run", end_late)
    reading, writing = os.pipe()
    out = Output(writing)
    out.write(b"first ")
    out.resume()
    assert ending.wait(PATIENCE)
    out.write(b"second")
    out.resume()
    assert receive(reading, 12) == b"first second"
    ended.set()
    wait_until_written(out)
    os.close(reading)
    os.close(writing)


def test_output_that_finds_no_room_for_a_thread_is_written_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def start(self: Thread) -> None:
        raise RuntimeError("can't start new thread")

    reading, writing = os.pipe()
    out = Output(writing)
    with monkeypatch.context() as patch:
        patch.setattr(Thread, "start", start)
        out.write(b"first ")
        out.finish()
    out.write(b"second")
    out.resume()
    assert receive(reading, 12) == b"first second"
    wait_until_written(out)
    os.close(reading)
    os.close(writing)


def test_diagnostic_with_any_characters_is_written(capfd: pytest.CaptureFixture[str]) -> None:
    report("caf\xe9 \udcff")
    wait_until_written(output.STDERR)
    assert capfd.readouterr().err == "iobatch.httpd: caf\xe9 \\udcff\n"
