"""The program: its output, and the errors that it reports."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from iobatch.httpd.program import MIN_DESCRIPTORS
from tests.support.httpd import COMMAND, SMALL, program, receive_head, run_httpd
from tests.support.programs import environment, run_python
from tests.support.sockets import PATIENCE, receive

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


# Runs the program in a process that has no descriptor left for its last system call at the start.
NO_DESCRIPTOR_LEFT = """
import os, resource, runpy
from iobatch.httpd import program
signal_socket = program.signal_socket
def last(numbers):
    stop = signal_socket(numbers)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, free))
    return stop
program.signal_socket = last
runpy.run_module("iobatch.httpd", run_name="__main__", alter_sys=True)
"""


def test_missing_directory_or_file_is_reported_in_one_line(site: Path) -> None:
    for path, reason in (("nothing", "No such file or directory"), ("1", "Not a directory")):
        result = run_httpd(site / path)
        assert result.returncode == 2
        assert result.stderr == f"iobatch.httpd: {site / path}: {reason}\n"


def test_soft_limit_of_descriptors_is_raised_and_hard_one_reported(site: Path) -> None:
    def limit(soft: int, hard: int) -> Callable[[], None]:
        return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    with program(site, "--workers", "30", preexec_fn=limit(20, 200)) as (_, url):
        assert url
    for few, workers in ((5, 1), (7, 1), (25, 1), (43, 10)):
        result = run_httpd(
            site, "--port", "0", "--workers", f"{workers}", preexec_fn=limit(few, few)
        )
        assert result.returncode == 1
        needed = MIN_DESCRIPTORS + 2 * workers
        assert result.stderr == (
            f"iobatch.httpd: at least {needed} descriptors are needed: see ulimit -n\n"
        )


@pytest.mark.parametrize("workers", ["1", "2"])
def test_failure_to_open_the_last_descriptor_of_the_start_is_reported_in_one_line(
    site: Path, workers: str
) -> None:
    result = subprocess.run(
        [sys.executable, "-c", NO_DESCRIPTOR_LEFT, site, "--port", "0", "--workers", workers],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr == "iobatch.httpd: 127.0.0.1 port 0: Too many open files\n"


@contextmanager
def connect_to_program(process: subprocess.Popen[bytes], path: Path) -> Iterator[socket.socket]:
    """Connect to the Unix socket of a program that prints nothing, once it listens there."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE)
        while client.connect_ex(os.fspath(path)):
            assert process.poll() is None
            os.sched_yield()
        yield client


@pytest.mark.parametrize("closed", ["<&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_standard_descriptors_lead_to_the_null_device(site: Path, closed: str) -> None:
    """A client's socket would take their numbers, and get diagnostics."""
    command = f'exec "$@" {closed}'
    with subprocess.Popen(
        ["sh", "-c", command, "sh", *COMMAND, site, "--unix", site / "socket"],
        stdout=subprocess.DEVNULL,
    ) as process:
        with connect_to_program(process, site / "socket") as client:
            client.sendall(SMALL)
            assert receive(client, 12) == b"HTTP/1.1 200"
            for fd, redirection in enumerate(("<", ">", "2>")):
                if f"{redirection}&-" in closed.split():
                    path = Path(f"/proc/{process.pid}/fd/{fd}").readlink()
                    assert path == Path(os.devnull)
        process.terminate()


@pytest.mark.parametrize("output", [">/dev/full", "| true", ">&-"])
def test_program_serves_when_its_output_takes_nothing(site: Path, output: str) -> None:
    folder = os.fsencode(site / "bare") + b"\xff"
    Path(os.fsdecode(folder)).mkdir()
    command = f'"$@" {output}'
    with subprocess.Popen(
        ["sh", "-c", command, "sh", *COMMAND, folder, "--unix", site / "socket"],
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        with connect_to_program(process, site / "socket") as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert receive(client, 12) == b"HTTP/1.1 200"
        os.killpg(process.pid, signal.SIGTERM)
        assert process.stderr is not None
        assert process.stderr.read().replace(b"Terminated\n", b"") == b""


def test_directory_is_printed_with_the_bytes_of_its_name(site: Path) -> None:
    folder = os.fsencode(site / "bare") + b"\xff"
    Path(os.fsdecode(folder)).mkdir()
    with subprocess.Popen(
        [*COMMAND, folder, "--port", "0"],
        stdout=subprocess.PIPE,
        env=environment(PYTHONIOENCODING="utf-8:strict"),
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"Serving " + folder + b" on http://")
        process.terminate()


def test_url_is_not_in_the_log(site: Path) -> None:
    """It is on the standard error output."""
    with program(site, "--log", "common") as (process, _):
        process.terminate()
        assert process.stdout is not None
        assert process.stdout.read() == ""


def test_log_without_an_output_is_refused(site: Path) -> None:
    result = subprocess.run(
        ["sh", "-c", '"$@" >&-', "sh", *COMMAND, site, "--log", "common"],
        stderr=subprocess.PIPE,
        timeout=PATIENCE,
        check=False,
    )
    assert (result.returncode, result.stderr) == (
        2,
        b"iobatch.httpd: --log: the standard output is closed\n",
    )


def test_quiet_program_writes_nothing_to_a_terminal(site: Path, tmp_path: Path) -> None:
    reading, writing = os.openpty()
    with subprocess.Popen(
        [*COMMAND, site, "--quiet", "--unix", tmp_path / "socket"], stdout=writing, stderr=writing
    ) as process:
        with connect_to_program(process, tmp_path / "socket") as client:
            client.sendall(SMALL)
            receive_head(client)
        process.terminate()
        assert process.wait(PATIENCE) == 0
    os.write(writing, b"end")
    os.close(writing)
    assert os.read(reading, 100) == b"end"
    os.close(reading)


def test_quiet_program_prints_no_url(site: Path, tmp_path: Path) -> None:
    """It still writes the log."""
    with subprocess.Popen(
        [*COMMAND, site, "--quiet", "--unix", tmp_path / "socket", "--log", "common"],
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        with connect_to_program(process, tmp_path / "socket") as client:
            client.sendall(SMALL)
            receive_head(client)
        process.terminate()
        assert process.stdout.readline().startswith(b"unix - - ")
        assert process.stdout.read() == b""


def test_threads_ask_for_the_interpreter_within_a_slice_of_the_loop() -> None:
    """So the log is written, and passwords are verified, while a listing is made."""
    code = """
import sys
from iobatch.httpd import directories, process
process.prepare_process()
print(sys.getswitchinterval() < directories.SLICE)
"""
    assert run_python(code).stdout == "True\n"
