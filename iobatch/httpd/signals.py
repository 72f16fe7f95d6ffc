"""Signals that reach a loop as bytes: each byte is the number of a signal."""

from __future__ import annotations

import signal
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import FrameType

# Each asks a server to stop.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def signal_socket(numbers: Iterable[int]) -> socket.socket:
    """Return a socket that receives a byte for each of these signals."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    # Python writes the byte for signals that have a handler, so each gets one that does nothing.
    # This also undoes an inherited SIG_IGN.
    signal.set_wakeup_fd(theirs.detach())
    for number in numbers:
        signal.signal(number, _do_nothing)
    # They may be blocked in the process that started this one.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
    return ours


def ignore_signals() -> None:
    """Ignore the signals of signal_socket, in a process that another one passes them on to."""
    signal.set_wakeup_fd(-1)
    for number in (*STOP_SIGNALS, signal.SIGHUP):
        if signal.getsignal(number) is _do_nothing:
            signal.signal(number, signal.SIG_IGN)


def count_stops(received: bytes) -> int:
    """Return how often these bytes of a signal socket ask to stop; its end of stream does, too."""
    return sum(number in STOP_SIGNALS for number in received) if received else 1


def has_hangup(received: bytes) -> bool:
    """Return whether these bytes of a signal socket ask to open the log file anew."""
    return signal.SIGHUP in received


def _do_nothing(_number: int, _frame: FrameType | None) -> None:
    """Handle a signal."""
