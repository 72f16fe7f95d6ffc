"""Fixtures for all tests."""

from __future__ import annotations

import gc
import importlib
import os
import sys
from contextlib import suppress
from time import time
from typing import TYPE_CHECKING, Any

import pytest
import trustme
from hypothesis import HealthCheck, settings

from tests.support.batches import data
from tests.support.drivers import DRIVERS, SEND_DRIVERS, driver
from tests.support.fakes import Scripted
from tests.support.httpd import MODIFIED, SECRET, Keys, serving
from tests.support.passwords import Password
from tests.support.programs import ROOT, tool
from tests.support.sockets import KINDS, fd_count, stream_pair
from tests.support.tls import TLS_VERSIONS, TLSClient

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.drivers import Step
    from tests.support.httpd import Address

# Without the sources of the package, as where the tests run with a wheel, nothing can be built.
collect_ignore = [] if (ROOT / "iobatch").is_dir() else ["packaging/test_build.py"]

# Each run has the same examples. A busy machine must not fail a test: there is no deadline.
settings.register_profile(
    "iobatch",
    deadline=None,
    derandomize=True,
    database=None,
    # One fault violates several facts: report the one with the shortest example.
    report_multiple_bugs=False,
    suppress_health_check=[HealthCheck.too_slow],
)
# The state machines of tests/models find more with more and other examples.
settings.register_profile(
    "nightly",
    settings.get_profile("iobatch"),
    derandomize=False,
    max_examples=150,
    stateful_step_count=100,
    print_blob=True,
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "iobatch"))


with suppress(ImportError):
    # libuv opens two descriptors for its first loop and keeps them: open them before any test.
    importlib.import_module("uvloop").new_event_loop().close()


def pytest_collection_finish() -> None:
    """Keep what exists before the first test out of garbage collections, of which tests make many.

    A collection of all modules and tests takes 50 ms.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """Assert that a test leaves no descriptor open, and closes none that was open before."""
    before = fd_count()
    yield
    if fd_count() != before:
        gc.collect()
        assert fd_count() == before, "the number of open descriptors has changed"


@pytest.fixture
def unraisable(monkeypatch: pytest.MonkeyPatch) -> list[BaseException | None]:
    """Return a list that collects the exceptions that are passed to sys.unraisablehook."""
    seen: list[BaseException | None] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: seen.append(args.exc_value))
    return seen


@pytest.fixture
def make_file(tmp_path: Path) -> Iterator[Callable[[bytes], int]]:
    """Give a function that makes a file and returns its descriptor, which the fixture closes."""
    fds: list[int] = []

    def make(content: bytes) -> int:
        path = tmp_path / f"file{len(fds)}"
        path.write_bytes(content)
        fds.append(os.open(path, os.O_RDWR))
        return fds[-1]

    yield make
    for fd in fds:
        os.close(fd)


@pytest.fixture(params=DRIVERS)
def step(request: pytest.FixtureRequest) -> Iterator[Step]:
    """Give each function that sends a batch, in turn."""
    with driver(request.param) as one_step:
        yield one_step


@pytest.fixture(params=SEND_DRIVERS)
def send(request: pytest.FixtureRequest) -> Iterator[Callable[..., int]]:
    """Give iob_send, with and without sendfile and sendmsg."""
    with driver(request.param) as one_step:
        yield one_step


@pytest.fixture(params=KINDS)
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Give two connected sockets of each family in turn."""
    with stream_pair(request.param) as sockets:
        yield sockets


@pytest.fixture
def tcp() -> Iterator[tuple[Any, Any]]:
    """Give two connected TCP sockets."""
    with stream_pair("tcp4") as sockets:
        yield sockets


@pytest.fixture
def sock() -> Iterator[Scripted]:
    """Give a scripted socket that accepts everything."""
    with Scripted() as scripted:
        yield scripted


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    """Make an authority that signs the certificates of servers."""
    return trustme.CA()


@pytest.fixture(params=TLS_VERSIONS, ids=lambda version: version.name)
def tls_client(request: pytest.FixtureRequest, authority: trustme.CA) -> TLSClient:
    """Give a TLS connection in memory after its handshake, in each version of TLS."""
    connection = TLSClient(authority, request.param)
    connection.shake_hands()
    return connection


@pytest.fixture
def large_file(tmp_path: Path) -> Path:
    """Make a file that the buffers of a connection's two sockets can't hold."""
    file = tmp_path / "file"
    file.write_bytes(data(4_000_000))
    return file


# The file server


@pytest.fixture(name="site")
def make_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a directory to serve; a secret file is beside it.

    The server's clock is ahead. So the files are not recent for it, and their tags are strong.
    """
    monkeypatch.setattr("iobatch.httpd.files.time", lambda: time() + 10)
    (tmp_path / "secret").write_bytes(SECRET)
    root = tmp_path / "site"
    (root / "sub" / "deep").mkdir(parents=True)
    (root / "bare").mkdir()
    (root / ".git").mkdir()
    (root / ".git" / "config").write_bytes(SECRET)
    (root / ".hidden").write_bytes(SECRET)
    (root / "index.html").write_bytes(b"<h1>home</h1>")
    (root / "sub" / "index.html").write_bytes(b"<h1>sub</h1>")
    (root / "sub" / "deep" / "file").write_bytes(b"deep")
    (root / "a b\xfc?.txt").write_bytes(b"odd")
    for size in (0, 1, 1024, 32768, 65536, 1 << 20):
        (root / str(size)).write_bytes(data(size, seed=size))
        os.utime(root / str(size), (MODIFIED, MODIFIED))
    return root


@pytest.fixture(name="address")
def serve_site(site: Path) -> Iterator[Address]:
    """Serve the directory, and give the server's address."""
    with serving(site) as (_, address):
        yield address


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory, authority: trustme.CA) -> Keys:
    """Return a certificate for the server, and a client that trusts it."""
    return Keys(tmp_path_factory.mktemp("keys"), authority)


@pytest.fixture(name="gated")
def make_gated() -> Iterator[Password]:
    """Give a password whose comparisons wait until the test opens the gate, or ends."""
    password = Password(b"secret", is_open=False)
    yield password
    password.gate.set()


# A test names the fixture of a program before those that start a server: then it is skipped first.


@pytest.fixture
def chromium() -> str:
    """Return the path of chromium, or skip the test."""
    return tool("chromium", "chromium")


@pytest.fixture
def curl() -> str:
    """Return the path of curl, or skip the test."""
    return tool("curl", "curl")


@pytest.fixture
def openssl() -> str:
    """Return the path of openssl, or skip the test."""
    return tool("openssl", "openssl")
