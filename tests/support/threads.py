"""Threads in tests."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.support.sockets import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def running(target: Callable[[], object]) -> Iterator[threading.Thread]:
    """Run a function in a thread; afterwards it must have ended."""
    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    yield thread
    thread.join(PATIENCE)
    assert not thread.is_alive()
