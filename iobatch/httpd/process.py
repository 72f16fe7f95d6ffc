"""What a process inherits and the server relies on."""

from __future__ import annotations

import os
import resource
import signal
import sys
from contextlib import suppress

# Seconds after which a thread that waits for the interpreter asks for it. While a listing is made,
# the loop releases the interpreter for a moment every 2 ms, and a thread that is patient for longer
# never gets it: the log would not be written, and no password verified.
SWITCH_INTERVAL = 0.0005


def prepare_process() -> int:
    """Set what the server relies on; return the most descriptors that the process may have."""
    # Where one of these is closed, a client's socket would take its number, and get diagnostics.
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(fd)
    sys.setswitchinterval(SWITCH_INTERVAL)
    # Where it is ignored, the exit status of a child is lost.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
