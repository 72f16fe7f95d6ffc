"""The log in a file, which is opened anew at SIGHUP, and the log on a terminal."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.support.httpd import address_of, children, get, program, run_httpd, started_workers
from tests.support.programs import open_files
from tests.support.sockets import PATIENCE

if TYPE_CHECKING:
    from pathlib import Path


def numbers(*paths: Path) -> list[int]:
    """Return the queries of the logged requests, which are numbers."""
    text = "".join(path.read_text() for path in paths)
    line = re.compile(r'127\.0\.0\.1 - - \[.+\] "GET /1\?(\d+) HTTP/1\.1" 200 1\n')
    assert re.fullmatch(f"({line.pattern})*", text), "each line is whole"
    return [int(number) for number in line.findall(text)]


def rotate(process: subprocess.Popen[str], log: Path, old: Path) -> None:
    """Rename the log, and ask for a new one."""
    log.rename(old)
    process.send_signal(signal.SIGHUP)


def opened(process: subprocess.Popen[str], path: Path) -> int:
    """Return how many of a program's processes have a file open."""
    return sum(path in open_files(pid) for pid in (process.pid, *children(process.pid)))


def wait_until_rotated(
    process: subprocess.Popen[str], log: Path, old: Path, processes: int
) -> None:
    """Wait until all processes have opened the new log, and then closed the old one."""
    while opened(process, log) < processes or opened(process, old):
        os.sched_yield()


@pytest.mark.parametrize("workers", [1, 2])
def test_lines_after_sighup_are_in_the_new_file(site: Path, tmp_path: Path, workers: int) -> None:
    log, old = tmp_path / "log", tmp_path / "old"
    with program(site, "--log-file", str(log), "--workers", str(workers)) as (process, url):
        for i in range(20):
            get(address_of(url), f"/1?{i}")
        processes = 1 if workers == 1 else 1 + workers
        rotate(process, log, old)
        wait_until_rotated(process, log, old, processes)
        for i in range(20, 40):
            get(address_of(url), f"/1?{i}")
        process.terminate()
        assert process.wait(PATIENCE) == 0
    assert sorted(numbers(old)) == list(range(20))
    assert sorted(numbers(log)) == list(range(20, 40))


@pytest.mark.parametrize("workers", ["1", "2"])
def test_no_line_is_lost_or_written_twice_while_the_log_is_rotated(
    site: Path, tmp_path: Path, workers: str
) -> None:
    log = tmp_path / "log"
    rotated = [tmp_path / f"log{i}" for i in range(4)]
    with program(site, "--log-file", str(log), "--workers", workers) as (process, url):
        for i in range(80):
            if not i % 20:
                while not log.exists():
                    os.sched_yield()
                rotate(process, log, rotated[i // 20])
            get(address_of(url), f"/1?{i}")
        while not log.exists():
            os.sched_yield()
        process.terminate()
        assert process.wait(PATIENCE) == 0
    assert sorted(numbers(*rotated, log)) == list(range(80))


def test_worker_that_is_started_after_sighup_writes_to_the_new_file(
    site: Path, tmp_path: Path
) -> None:
    log, old = tmp_path / "log", tmp_path / "old"
    with program(site, "--log-file", str(log), "--workers", "2", stderr=subprocess.DEVNULL) as (
        process,
        _,
    ):
        while opened(process, log) < 3:
            os.sched_yield()
        rotate(process, log, old)
        wait_until_rotated(process, log, old, 3)
        killed = children(process.pid)[0]
        os.kill(killed, signal.SIGKILL)
        while killed in children(process.pid) or opened(process, log) < 3:
            os.sched_yield()
        assert not opened(process, old)


@pytest.mark.parametrize("workers", [1, 2])
def test_log_that_cannot_be_opened_anew_goes_on_in_the_old_file(
    site: Path, tmp_path: Path, workers: int
) -> None:
    """Each process reports it."""
    folder, renamed = tmp_path / "folder", tmp_path / "renamed"
    folder.mkdir()
    options = "--log-file", str(folder / "log"), "--workers", str(workers)
    with program(site, *options, stderr=subprocess.PIPE) as (process, url):
        if workers > 1:
            started_workers(process, workers)
        folder.rename(renamed)
        process.send_signal(signal.SIGHUP)
        assert process.stderr is not None
        for _ in range(1 if workers == 1 else 1 + workers):
            assert process.stderr.readline() == (
                f"iobatch.httpd: {folder}/log: No such file or directory; "
                "the log goes on in the old file\n"
            )
        get(address_of(url), "/1?1")
        process.terminate()
        assert process.wait(PATIENCE) == 0
    assert numbers(renamed / "log") == [1]


def test_log_file_is_appended_to_and_readable_by_others(site: Path, tmp_path: Path) -> None:
    """Its format is common, unless --log names another one; the URL is on the standard output."""
    log = tmp_path / "log"
    before = os.umask(0o027)
    for i in range(2):
        options = ("--log", "combined") if i else ()
        with program(site, "--log-file", str(log), *options) as (process, url):
            get(address_of(url), "/1?0")
            process.terminate()
            assert process.wait(PATIENCE) == 0
    os.umask(before)
    first, second = log.read_text().splitlines()
    assert first.endswith('HTTP/1.1" 200 1')
    assert second.endswith('HTTP/1.1" 200 1 "-" "-"')
    assert log.stat().st_mode & 0o777 == 0o640


def test_log_file_that_cannot_be_opened_is_reported_before_the_address_is_used(
    site: Path, tmp_path: Path
) -> None:
    result = run_httpd(site, "--log-file", tmp_path, "--bind", "192.0.2.1")
    assert result.returncode == 2
    assert result.stderr == f"iobatch.httpd: --log-file {tmp_path}: Is a directory\n"


@pytest.mark.parametrize("workers", ["1", "2"])
def test_sighup_ends_a_program_without_a_log_file(site: Path, workers: str) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the program inherits it; nohup(1)
    try:
        with program(site, "--workers", workers) as (process, _):
            process.send_signal(signal.SIGHUP)
            assert process.wait(PATIENCE) == -signal.SIGHUP
    finally:
        signal.signal(signal.SIGHUP, before)


def lines_on_terminal(site: Path, *options: str) -> list[str]:
    """Return the lines that a program, which answers a request, writes to a terminal."""
    reading, writing = os.openpty()
    with program(site, *options, stderr=writing) as (process, url):
        os.close(writing)
        get(address_of(url), "/1?7")
        process.terminate()
        assert process.wait(PATIENCE) == 0
    with os.fdopen(reading, "rb", buffering=0) as terminal:
        received = b""
        try:
            while piece := terminal.read(1 << 16):
                received += piece
        except OSError:  # EIO: the other end is closed
            pass
    return received.decode().splitlines()


def test_terminal_gets_a_line_for_each_request(site: Path) -> None:
    [line] = lines_on_terminal(site)
    assert re.fullmatch(r'127\.0\.0\.1 - - \[.+\] "GET /1\?7 HTTP/1\.1" 200 1', line)


def test_terminal_gets_no_lines_when_the_log_is_elsewhere_or_off(
    site: Path, tmp_path: Path
) -> None:
    assert lines_on_terminal(site, "--log", "none") == []
    assert lines_on_terminal(site, "--log-file", str(tmp_path / "log")) == []
    assert numbers(tmp_path / "log") == [7]
