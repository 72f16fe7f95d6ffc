"""What a process inherits and the server relies on."""

from __future__ import annotations

import os
import resource
import signal
from contextlib import suppress


def prepare_process() -> int:
    """Set what the server relies on; return the most descriptors that the process may have."""
    # Where one of these is closed, a client's socket would take its number, and get diagnostics.
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(fd)
    # Where it is ignored, the exit status of a child is lost.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
