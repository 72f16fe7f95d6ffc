"""Fixtures for all tests."""

from __future__ import annotations

import gc
import os
import sys
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

from tests.helpers import DRIVERS, FAMILIES, SEND_DRIVERS, driver, fd_count, stream_pair

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.helpers import Step

# The same examples in every run, and none is too slow: the machine may be busy.
settings.register_profile(
    "iobatch",
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("iobatch")


@pytest.fixture
def no_leaks() -> Iterator[None]:
    """Check that a test leaves no more descriptors open than there were."""
    before = fd_count()
    yield
    if fd_count() != before:
        gc.collect()
        assert fd_count() == before, "descriptors were left open"


@pytest.fixture
def unraisable(monkeypatch: pytest.MonkeyPatch) -> list[BaseException | None]:
    """Collect the exceptions that sys.unraisablehook is told of."""
    seen: list[BaseException | None] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: seen.append(args.exc_value))
    return seen


@pytest.fixture
def make_file(tmp_path: Path) -> Iterator[Callable[[bytes], int]]:
    """Give a function that writes a file and opens it; its descriptor is closed at the end."""
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
    """Give each way out in turn."""
    with driver(request.param) as one_step:
        yield one_step


@pytest.fixture(params=SEND_DRIVERS)
def send(request: pytest.FixtureRequest) -> Iterator[Callable[..., int]]:
    """Give iob_send, with each combination of what the system may lack."""
    with driver(request.param) as one_step:
        yield one_step


@pytest.fixture(params=FAMILIES)
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Give two connected sockets of each family in turn."""
    with stream_pair(request.param) as sockets:
        yield sockets


@pytest.fixture
def tcp() -> Iterator[tuple[Any, Any]]:
    """Give two connected TCP sockets."""
    with stream_pair("tcp4") as sockets:
        yield sockets
