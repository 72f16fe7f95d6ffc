"""The file server as a program that reports what it holds: python -m tests.soak.observed FD ...

At SIGUSR1 each of its processes writes a line of JSON to the descriptor. The other arguments are
those of iobatch.httpd. Times after which caches are swept, listings are made anew and workers are
started are shorter than usual, so that the server soon has nothing to do after its last client.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import sys
from _abc import _reset_caches
from abc import ABCMeta
from contextlib import suppress
from functools import lru_cache
from signal import SIGUSR1, signal

from attrs import asdict

from iobatch.httpd import cache, directories, server, workers
from iobatch.httpd.program import main
from iobatch.httpd.server import Server
from tests.soak.flatness import sample

LRUCache = type(lru_cache(int))
# Seconds.
SHORT = 0.1


class Observer:
    """Writes the reports."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        # The number of times that the server had no descriptor for a client.
        self._pauses = 0
        pause = Server._pause

        def counted(of: Server) -> None:
            self._pauses += 1
            pause(of)

        Server._pause = counted  # type: ignore[method-assign]
        signal(SIGUSR1, self._report)
        for each in gc.get_objects():
            if isinstance(each, ABCMeta):
                with suppress(TypeError):
                    isinstance(self, each)  # makes the caches, which exist from then on

    def _report(self, _number: int, _frame: object) -> None:
        forget()
        taken = sample()
        servers = [each for each in gc.get_objects() if type(each) is Server]
        idle = not any(
            each._connections or each._files or each._paused or each._settings.log
            for each in servers
        )
        line = json.dumps({"idle": idle, "pauses": self._pauses, "sample": asdict(taken)})
        content = f"{line}\n".encode()
        while content:
            content = content[os.write(self._fd, content) :]


def forget() -> None:
    """Clear all caches that have a bound: they fill up, and do not leak."""
    for each in gc.get_objects():
        if type(each) is LRUCache and each.cache_parameters()["maxsize"] is not None:
            each.cache_clear()
        elif isinstance(each, ABCMeta):
            _reset_caches(each)  # as CPython's own search for leaks does


def run() -> int:
    """Run the server."""
    cache.FRESH = directories.FRESH = server.TICK = workers.RESPAWN_DELAY = SHORT
    faulthandler.enable()
    Observer(int(sys.argv.pop(1)))
    return main()


if __name__ == "__main__":
    sys.exit(run())
