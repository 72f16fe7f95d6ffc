"""What the file server does to go on: limits, workers, signals, and the log of it all."""

from __future__ import annotations

import http.client
import os
import re
import select
import signal
import socket
import ssl
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from selectors import EVENT_READ
from time import monotonic

import pytest

from tests.helpers import PATIENCE, data, receive, stream_pair
from tests.httpd_helpers import (
    HTTPD,
    Clock,
    address_of,
    exchange,
    get,
    keeps_rate,
    make_clock,  # noqa: F401
    make_site,  # noqa: F401
    program,
    read_all,
    receive_head,
    run_httpd,
    serving,
    split,
    tool,
)

# isort: split
from accesslog import MAX_WAITING, MAX_WRITE, AccessLog
from connection import LINGER_SECONDS, REST, Connection
from files import Files
from responses import Request
from server import MAX_TURNED_AWAY, REST_TICK
from settings import Settings

REQUEST = b"GET /1048576 HTTP/1.1\r\nHost: x\r\n\r\n"
SMALL = b"GET /1 HTTP/1.1\r\nHost: x\r\n\r\n"


# Limits


def test_header_timeout(site: Path) -> None:
    """From its first byte a request has less time than a connection may be idle."""
    files = Files(site)
    with stream_pair("unix") as (ours, theirs):
        ours.setblocking(False)
        connection = Connection(ours, files, Settings(timeout=60.0, header_timeout=20.0), 60.0)
        theirs.sendall(SMALL)
        assert connection.step(5.0) == EVENT_READ
        assert connection.deadline == 65.0, "idle"
        theirs.sendall(SMALL[:10])
        assert connection.step(10.0) == EVENT_READ
        assert connection.deadline == 30.0, "a request has begun"
        theirs.sendall(SMALL[10:20])
        assert connection.step(29.0) == EVENT_READ
        assert connection.deadline == 30.0, "and goes on too slowly"
        theirs.sendall(SMALL[20:])
        assert connection.step(29.5) == EVENT_READ
        assert connection.deadline == 89.5, "idle again"
        connection.close()
    files.close()


@pytest.mark.parametrize("size", [1, 3, 5, SMALL.index(b"Host")])
def test_header_timeout_behind_another(site: Path, size: int) -> None:
    """It is the same for a request that begins in the same piece of input as another one ends."""
    files = Files(site)
    with stream_pair("unix") as (ours, theirs):
        ours.setblocking(False)
        connection = Connection(ours, files, Settings(timeout=60.0, header_timeout=20.0), 60.0)
        theirs.sendall(SMALL + SMALL[:size])
        assert connection.step(5.0) == EVENT_READ
        assert connection.deadline == 25.0
        theirs.sendall(SMALL[size:-1])
        assert connection.step(6.0) == EVENT_READ
        assert connection.deadline == 25.0
        theirs.sendall(SMALL[-1:])
        assert connection.step(7.0) == EVENT_READ
        assert connection.deadline == 67.0
        connection.close()
    files.close()


def test_max_connections(site: Path) -> None:
    """Who comes beyond the limit is told so, at once and cleanly; others are served as before."""
    curl = tool("curl", "curl")
    with serving(site, max_connections=3) as (_, address), ExitStack() as stack:
        served = [stack.enter_context(socket.create_connection(address, PATIENCE)) for _ in "123"]
        for _ in "12":
            for sock in served:
                sock.sendall(SMALL)
                assert receive(sock, 12) == b"HTTP/1.1 200"
                receive_head(sock)
                receive(sock, 1)
            result = subprocess.run(
                [curl, "-sSi", f"http://{address[0]}:{address[1]}/1024"],
                capture_output=True,
                timeout=PATIENCE,
                check=True,
            )
            [refused] = split(result.stdout)
            assert refused.status == 503
            assert refused.headers["Retry-After"] == "5"
            assert refused.headers["Connection"] == "close"
        assert split(exchange(address, SMALL * 3))[0].status == 503
        served[0].close()
        assert any(get(address, "/1024").status == 200 for _ in range(1000))


@pytest.mark.parametrize(
    ("served", "turned_away"), [(1, 1), (10, 3), (4 * MAX_TURNED_AWAY, MAX_TURNED_AWAY)]
)
def test_far_too_many_connections(site: Path, served: int, turned_away: int) -> None:
    """Who is turned away is no longer served than it takes to say so, and they are bounded."""
    with serving(site, max_connections=served) as (server, address), ExitStack() as stack:

        def connect() -> socket.socket:
            return stack.enter_context(socket.create_connection(address, PATIENCE))

        first = connect()
        first.sendall(SMALL)
        receive_head(first)
        receive(first, 1)
        silent = [connect() for _ in range(served + turned_away + 10)]
        for _ in range(10):  # it has had some turns behind that
            first.sendall(SMALL)
            receive_head(first)
            receive(first, 1)
        assert len(server._connections) == served + turned_away
        soon = monotonic() + LINGER_SECONDS
        assert sum(each.deadline <= soon for each in server._connections) == turned_away
        waiting = connect()
        waiting.sendall(SMALL)
        for sock in silent:
            sock.close()
        first.close()
        assert receive(waiting, 12) in {b"HTTP/1.1 200", b"HTTP/1.1 503"}


@pytest.mark.parametrize("rate", [1000, 80_000])
@pytest.mark.parametrize("accept", ["identity", "gzip"])
def test_rate(site: Path, clock: Clock, accept: str, rate: int) -> None:
    """What leaves, coded or not, is what the rate allows, in small shares; resting is no idling."""
    (site / "text.txt").write_bytes(data(1 << 20).hex().encode())
    files = Files(site)
    request = f"GET /text.txt HTTP/1.1\r\nHost: x\r\nAccept-Encoding: {accept}\r\n\r\n"
    with stream_pair("tcp4") as (ours, theirs):
        ours.setblocking(False)
        connection = Connection(ours, files, Settings(rate=rate, timeout=5.0), clock.now + 5.0)
        theirs.sendall(request.encode())
        keeps_rate(connection, theirs, clock, rate)
        connection.close()
    files.close()


def test_rate_of_small_responses(site: Path, clock: Clock) -> None:
    """Many small responses, one after another, leave no faster than a large one, nor slower."""
    files = Files(site)
    with stream_pair("unix") as (ours, theirs):
        ours.setblocking(False)
        theirs.setblocking(False)
        connection = Connection(ours, files, Settings(rate=10_000), 60.0)
        start, received = clock.now, 0
        for _ in range(1000):
            theirs.sendall(SMALL)
            while (events := connection.step(clock.now)) != EVENT_READ:
                assert events == REST
                clock.now += REST_TICK
            received += len(theirs.recv(1 << 16))
        assert received == pytest.approx(10_000 * (clock.now - start), rel=0.02)
        connection.close()
    files.close()


@pytest.mark.parametrize("rate", [1, 5])
def test_least_rate(site: Path, clock: Clock, rate: int) -> None:
    """Even the lowest rate comes to an end."""
    files = Files(site)
    with stream_pair("unix") as (ours, theirs):
        ours.setblocking(False)
        connection = Connection(ours, files, Settings(rate=rate, timeout=5.0), clock.now + 5.0)
        start = clock.now
        theirs.sendall(SMALL)
        while connection.step(clock.now) == REST:
            assert connection.deadline > clock.now
            clock.now += REST_TICK
        [response] = split(theirs.recv(1 << 16))
        assert response.body == data(1, seed=1)
        assert clock.now - start > 200 / rate
        connection.close()
    files.close()


@pytest.mark.parametrize("accept", ["identity", "gzip"])
def test_rate_of_everything(site: Path, accept: str) -> None:
    """What is sent at a limited rate comes whole."""
    (site / "text.txt").write_bytes(data(1 << 20).hex().encode())
    with serving(site, rate=20_000_000) as (_, address):
        response = get(address, "/text.txt", Accept_Encoding=accept, Connection="close")
        length = len(response.body)
        assert length == 2 << 20 if accept == "identity" else length < 2 << 20
        assert get(address, "/1048576").body == data(1 << 20, seed=1 << 20)


def test_exception(
    site: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """What nobody has thought of ends a connection, and is told; others go on."""

    def failing(*args: object) -> None:
        raise ZeroDivisionError("nobody thought of it")

    with serving(site) as (_, address), socket.create_connection(address, PATIENCE) as other:
        other.sendall(SMALL)
        assert receive(other, 12) == b"HTTP/1.1 200"
        receive_head(other)
        with monkeypatch.context() as patch:
            patch.setattr(Connection, "_answer", failing)
            assert exchange(address, SMALL) == b""
        other.sendall(SMALL)
        assert receive(other, 13)[1:] == b"HTTP/1.1 200"
    assert "ZeroDivisionError: nobody thought of it" in capfd.readouterr().err


# Where to listen


@pytest.mark.parametrize("workers", ["1", "3"])
def test_unix(site: Path, tmp_path: Path, workers: str) -> None:
    """It serves on a Unix socket, takes over one that nobody has, and removes it at its end."""
    curl = tool("curl", "curl")
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(os.fspath(path))
    with program(site, "--unix", str(path), "--workers", workers) as (process, url):
        assert url == f"http+unix:{path}"
        while workers != "1" and len(children(process.pid)) < int(workers):
            os.sched_yield()
        result = subprocess.run(
            [curl, "-fsS", "-H", "Connection: close", "--unix-socket", path]
            + ["http://x/1024"] * 10,
            capture_output=True,
            timeout=PATIENCE,
            check=True,
        )
        assert result.stdout == data(1024, seed=1024) * 10
        second = run_httpd(site, "--unix", path)
        assert second.returncode == 1
        assert second.stderr == f"httpd: {path}: Address already in use\n"
        process.terminate()
        assert process.wait(PATIENCE) == 0
    assert not path.exists()


def test_unix_successor(site: Path, tmp_path: Path) -> None:
    """A server that ends leaves the path alone that another one has taken over meanwhile."""
    path = tmp_path / "socket"

    def connect(stack: ExitStack) -> socket.socket:
        sock = stack.enter_context(socket.socket(socket.AF_UNIX))
        sock.settimeout(PATIENCE)
        sock.connect(os.fspath(path))
        return sock

    with ExitStack() as stack, program(site, "--unix", str(path)) as (first, _):
        slow, idle = connect(stack), connect(stack)
        slow.sendall(REQUEST * 20)
        receive(slow, 1)
        first.terminate()
        assert idle.recv(1) == b"", "it has taken notice"
        with program(site, "--unix", str(path)) as (second, _):
            slow.close()
            assert first.wait(PATIENCE) == 0
            client = connect(stack)
            client.sendall(SMALL)
            assert receive(client, 12) == b"HTTP/1.1 200"
            second.terminate()
            assert second.wait(PATIENCE) == 0
    assert not path.exists()


@pytest.fixture
def ipv6() -> None:
    """Skip a test where there is no IPv6."""
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            pass
    except OSError:
        pytest.skip("this machine has no IPv6 loopback: enable it (net.ipv6.conf.lo)")


@pytest.mark.usefixtures("ipv6")
def test_ipv6(site: Path) -> None:
    """It listens on IPv6 as well."""
    with program(site, "--bind", "::1") as (_, url):
        assert url.startswith("http://[::1]:")
        assert get(address_of(url), "/1").status == 200


@pytest.mark.usefixtures("ipv6")
def test_all_addresses(site: Path) -> None:
    """Bound to "::" it serves IPv4 as well, by which the log names who comes that way."""
    with program(site, "--bind", "::", "--log", "common", "--workers", "2") as (process, url):
        host, port = address_of(url)
        assert host == "localhost"
        for each in ("127.0.0.1", "::1"):
            assert get((each, port), "/1024").body == data(1024, seed=1024)
        process.terminate()
        assert process.stdout is not None
        lines = process.stdout.read().splitlines()
        assert {line.partition(" ")[0] for line in lines} == {"127.0.0.1", "::1"}


def test_unix_path_taken(site: Path) -> None:
    """A file that is no socket is left alone."""
    result = run_httpd(site, "--unix", site / "1024")
    assert result.returncode == 1
    assert (site / "1024").read_bytes() == data(1024, seed=1024)


def test_self_signed(site: Path) -> None:
    """A certificate of its own serves for trying TLS, with the names it is reached by."""
    tool("openssl", "openssl")
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with program(site, "--self-signed") as (_, url):
        client = http.client.HTTPSConnection(*address_of(url), timeout=PATIENCE, context=context)
        client.request("GET", "/1024")
        assert client.getresponse().read() == data(1024, seed=1024)
        client.close()
        pem = ssl.get_server_certificate(address_of(url), timeout=PATIENCE)
    trusting = ssl.create_default_context(cadata=pem)
    assert any(
        ("IP Address", "127.0.0.1") in each["subjectAltName"]  # type: ignore[operator]
        for each in trusting.get_ca_certs()
    )


def test_self_signed_without_openssl(site: Path) -> None:
    """Without the program that makes certificates this is told in one line."""
    result = subprocess.run(
        [sys.executable, HTTPD, site, "--self-signed"],
        env={"PATH": "/nowhere"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert result.returncode == 2
    assert result.stderr == "httpd: --self-signed: openssl: No such file or directory\n"


# Workers


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_workers(site: Path) -> None:
    """Several processes serve one port; one that dies is replaced; all stop together."""
    with program(site, "--workers", "3", stderr=subprocess.PIPE) as (process, url):
        address = address_of(url)
        for _ in range(20):
            assert get(address, "/1024").body == data(1024, seed=1024)
        before = children(process.pid)
        assert len(before) == 3
        second = run_httpd(site, "--workers", "2", "--port", str(address[1]))
        assert second.returncode == 1
        assert "Address already in use" in second.stderr
        os.kill(before[0], signal.SIGKILL)
        assert process.stderr is not None
        assert "a worker died" in process.stderr.readline()
        process.terminate()
        assert process.wait(PATIENCE) == 0
        assert not any(Path(f"/proc/{pid}/cmdline").exists() for pid in before)


NO_FORK = """
import os, runpy, sys
calls, fork = [], os.fork
def failing():
    calls.append(1)
    if len(calls) in {2, 4}:
        raise BlockingIOError(11, "no more processes")
    return fork()
os.fork = failing
del sys.argv[0]
sys.path.insert(0, sys.argv[0])
import workers
workers.RESPAWN_DELAY = 0.01
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_no_processes(site: Path, tmp_path: Path) -> None:
    """A worker that can't be started is told, and tried again later; the others serve."""
    (tmp_path / "script").write_text(NO_FORK)
    with subprocess.Popen(
        [sys.executable, tmp_path / "script", HTTPD, site, "--port", "0", "--workers", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        match = re.search(r" on (\S+) \(", process.stdout.readline())
        assert match
        told = "httpd: a worker can't be started: no more processes\n"
        assert process.stderr.readline() == told
        while len(children(process.pid)) < 2:
            os.sched_yield()
        os.kill(children(process.pid)[0], signal.SIGKILL)
        assert "a worker died" in process.stderr.readline()
        assert process.stderr.readline() == told
        while len(children(process.pid)) < 2:
            os.sched_yield()
        assert get(address_of(match[1]), "/1").status == 200
        process.terminate()
        assert process.wait(PATIENCE) == 0
        assert process.stderr.read() == ""


def test_workers_end_with_the_first(site: Path) -> None:
    """When the process that looks after them is killed, no worker stays."""
    with program(site, "--workers", "2", stderr=subprocess.DEVNULL) as (process, url):
        assert get(address_of(url), "/1").status == 200
        with ExitStack() as stack:
            # A descriptor of a process becomes readable at its end, whoever its parent is.
            fds = [os.pidfd_open(pid) for pid in children(process.pid)]
            for fd in fds:
                stack.callback(os.close, fd)
            assert len(fds) == 2
            process.kill()
            for fd in fds:
                assert select.select([fd], [], [], PATIENCE)[0]


# Stopping


def knock(address: tuple[str, int]) -> None:
    """Connect until that is refused: until all workers have taken notice."""
    while True:
        with socket.create_connection(address, PATIENCE) as late:
            assert late.recv(1) == b"", "who comes late is not served"


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_grace(site: Path, number: int, workers: str) -> None:
    """At the end no more is accepted, idle clients are left, and what was begun is finished."""
    with program(site, "--workers", workers) as (process, url), socket.socket() as sock:
        address = address_of(url)
        with socket.create_connection(address, PATIENCE) as idle:
            idle.sendall(SMALL)
            assert receive(idle, 12) == b"HTTP/1.1 200"
            receive_head(idle)
            receive(idle, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.settimeout(PATIENCE)
            sock.connect(address)
            sock.sendall(REQUEST * 20)
            begun = receive(sock, 1)
            process.send_signal(number)
            assert idle.recv(1) == b"", "nothing runs there"
        with pytest.raises(ConnectionError):
            knock(address)
        answers = split(begun + read_all(sock))
        assert len(answers) == 20
        assert all(answer.body == data(1 << 20, seed=1 << 20) for answer in answers)
        sock.close()
        assert process.wait(PATIENCE) == 0


@pytest.mark.parametrize(("grace", "signals"), [("1000", 2), ("0", 1)])
def test_end_of_patience(site: Path, grace: str, signals: int) -> None:
    """A second signal, or the end of --grace, cuts off what is still sent."""
    with program(site, "--grace", grace) as (process, url), socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(PATIENCE)
        address = address_of(url)
        with socket.create_connection(address, PATIENCE) as idle:
            sock.connect(address)
            sock.sendall(REQUEST * 20)
            receive(sock, 1)
            process.send_signal(signal.SIGINT)
            assert idle.recv(1) == b"", "it has taken notice"
        if signals == 2:
            assert process.poll() is None
            process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0


# The log


def run_logged(site: Path, kind: str, *requests: bytes) -> list[str]:
    with subprocess.Popen(
        [sys.executable, HTTPD, site, "--port", "0", "--log", kind],
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        match = re.search(rb"http://127.0.0.1:(\d+)/", process.stdout.readline())
        assert match
        for request in requests:
            exchange(("127.0.0.1", int(match[1])), request)
        process.terminate()
        return process.stdout.read().decode("ascii").splitlines()


HEAD = r"127\.0\.0\.1 - - \[\d\d/[A-Z][a-z][a-z]/\d{4}:\d\d:\d\d:\d\d \+0000\] "


def test_common_log(site: Path) -> None:
    """Each response has its line, with its status and the length of its content."""
    host = b" HTTP/1.1\r\nHost: x\r\n"
    lines = run_logged(
        site,
        "common",
        b"GET /1024?q" + host + b"\r\nHEAD /1024" + host + b"\r\n",
        b"GET /nothing" + host + b"\r\n",
        b"GET /1024" + host + b"Range: bytes=1-5\r\n\r\n",
        b"GET /1024 HTTP/1.0\r\nIf-None-Match: *\r\n\r\n",
        b"nonsense\r\n\r\n",
    )
    rests = [re.sub(HEAD, "", line) for line in lines]
    assert rests == [
        '"GET /1024?q HTTP/1.1" 200 1024',
        '"HEAD /1024 HTTP/1.1" 200 -',
        '"GET /nothing HTTP/1.1" 404 14',
        '"GET /1024 HTTP/1.1" 206 5',
        '"GET /1024 HTTP/1.0" 304 -',
        '"-" 400 16',
    ]


def test_combined_log(site: Path) -> None:
    """The Combined format has the referrer and the agent, and nothing that ends a field."""
    [line, plain] = run_logged(
        site,
        "combined",
        b'GET /"\\ HTTP/1.1\r\nHost: x\r\nReferer: a"b\xe9\r\nUser-Agent: x\ty\r\n\r\n',
        b"GET /1 HTTP/1.1\r\nHost: x\r\n\r\n",
    )
    line = re.sub(HEAD, "", line)
    assert line == r'"GET /\x22\x5c HTTP/1.1" 404 14 "a\x22b\xe9" "x\x09y"'
    assert plain.endswith('"GET /1 HTTP/1.1" 200 1 "-" "-"')


def test_nothing_moves_the_cursor() -> None:
    """No byte that isn't printable gets into the log, even if the parser lets it through."""
    reading, writing = os.pipe()
    every = bytes(range(256))
    log = AccessLog(writing, combined=True)
    headers = {b"referer": every, b"user-agent": every}
    log.add(b"::1", Request(b"GET", every, "1.1", headers, keep_alive=True), b"200", 0)
    log.flush()
    os.close(writing)
    line = os.read(reading, 1 << 16)
    os.close(reading)
    assert re.fullmatch(rb'[ -~]+"GET [!-~ ]+ HTTP/1.1" 200 - "[ -~]+" "[ -~]+"\n', line)
    assert line.count(b'"') == 6


def test_log_is_written_in_whole_lines() -> None:
    """Lines are gathered, but no write is more than a pipe takes as one piece."""
    reading, writing = os.pipe()
    log = AccessLog(writing, combined=False)
    request = Request(b"GET", b"/" + b"x" * 500, "1.1", {}, keep_alive=True)
    for _ in range(20):
        log.add(b"127.0.0.1", request, b"200", 1)
    log.flush()
    os.close(writing)
    content = os.read(reading, 1 << 20)
    os.close(reading)
    lines = content.splitlines()
    assert len(lines) == 20
    assert all(line.startswith(b"127.0.0.1") and line.endswith(b" 200 1") for line in lines)
    log.add(b"", Request(b"", b"", "1.1", {}, keep_alive=False), b"400", None)
    log.flush()  # nobody reads: that is no reason to end
    assert MAX_WRITE == 4096


@pytest.mark.parametrize("value", [b"x", b'"', b"xx\\"])
def test_long_lines(value: bytes) -> None:
    """However long a request is, its line is one piece, and nothing that was cut ends a field."""
    reading, writing = os.pipe()
    log = AccessLog(writing, combined=True)
    for i in range(4):
        long = b"y" * i + value * 8000
        headers = {b"referer": long, b"user-agent": long}
        log.add(b"::1", Request(b"OPTIONS", long, "1.1", headers, keep_alive=True), b"200", 10**18)
        log.flush()
        line = os.read(reading, 1 << 20)
        assert len(line) <= MAX_WRITE
        assert line.endswith(b'"\n')
        assert line.count(b'"') == 6
        assert b"\\" not in re.sub(rb"\\x[0-9a-f]{2}", b"", line)
    os.close(reading)
    os.close(writing)


def test_nobody_reads_the_log() -> None:
    """Who has the other end and doesn't read makes nobody wait; what has no room is lost."""
    reading, writing = os.pipe()
    log = AccessLog(writing, combined=False)
    target = b"/" + b"x" * 1000
    for i in range(10_000):
        request = Request(b"GET", target, "1.1", {}, keep_alive=True)
        log.add(b"", request, b"200", i + 1)
    log.flush()
    assert log
    assert sum(map(len, log._pieces)) <= MAX_WAITING * MAX_WRITE
    received = bytearray()
    while log:
        received += os.read(reading, 1 << 16)
        log.flush()
    os.close(writing)
    while piece := os.read(reading, 1 << 16):
        received += piece
    os.close(reading)
    sizes = [int(line.rpartition(b" ")[2]) for line in received.splitlines()]
    assert sizes == list(range(1, len(sizes) + 1))
    assert MAX_WAITING < len(sizes) < 10_000


def test_quiet(site: Path, tmp_path: Path) -> None:
    """--quiet says nothing."""
    with subprocess.Popen(
        [sys.executable, HTTPD, site, "--quiet", "--unix", tmp_path / "socket", "--log", "common"],
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        client = socket.socket(socket.AF_UNIX)
        with client:
            for _ in range(10_000):
                try:
                    client.connect(os.fspath(tmp_path / "socket"))
                    break
                except OSError:
                    os.sched_yield()
                    select.select([], [], [], 0.002)
            client.sendall(SMALL)
            receive_head(client)
        process.terminate()
        assert process.stdout.readline().startswith(b"unix - - ")
        assert process.stdout.read() == b""
