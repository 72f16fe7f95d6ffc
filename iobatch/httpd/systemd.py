"""The service manager's side of the program: its listening socket, and its notifications."""

from __future__ import annotations

import errno
import os
import socket
from contextlib import suppress

# The first descriptor that the service manager passes (sd_listen_fds(3)).
FIRST_DESCRIPTOR = 3
_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
_FAMILIES = {socket.AF_INET, socket.AF_INET6, socket.AF_UNIX}


def inherited_listener() -> socket.socket | None:
    """Return the non-blocking listening socket of the service manager; None: it passes none.

    Raises:
        OSError: it passes something else.

    """
    pid, count, _ = (os.environ.pop(name, "") for name in _VARIABLES)
    if pid != str(os.getpid()) or count in {"", "0"}:
        return None  # the variables are for another process, which has started this one
    if count != "1":
        raise OSError(errno.EINVAL, "one socket is expected, not several")
    listener = socket.socket(fileno=FIRST_DESCRIPTOR)
    if (
        listener.family not in _FAMILIES
        or listener.type != socket.SOCK_STREAM
        or not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    ):
        listener.close()
        raise OSError(errno.EINVAL, "not a listening stream socket")
    listener.set_inheritable(False)
    listener.setblocking(False)
    return listener


def notify(state: str) -> None:
    """Tell the service manager about a change of state, if there is one (sd_notify(3)).

    It must never delay or end the server: a failure has no effect.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address.startswith("@"):  # an abstract address (unix(7))
        address = "\0" + address[1:]
    if address:
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.sendto(state.encode(), address)


def leave_notifying() -> None:
    """Notify no more: the service manager accepts notifications of the main process only."""
    os.environ.pop("NOTIFY_SOCKET", None)
