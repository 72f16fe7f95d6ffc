"""Watching a socket until the event loop reports it writable, or its owner closes it.

A loop must not watch a descriptor that the caller can close: asyncio would never call back, and
uvloop ends the process. So the loop watches a duplicate, which only this module closes. While the
duplicate is open, closing the socket does not close the connection; one timer for each loop looks
for sockets that were closed meanwhile.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final, final
from weakref import WeakKeyDictionary, WeakSet

from attrs import define, field

from iobatch._errors import is_interruption, suppress_call_error

if TYPE_CHECKING:
    import asyncio
    import socket
    from collections.abc import Callable

# Seconds between two checks for closed sockets.
CHECK_INTERVAL: Final = 0.5
# Seconds until the next attempt to send if no descriptor is available for the duplicate.
RETRY_INTERVAL: Final = 0.01
_EXHAUSTED: Final = (errno.EMFILE, errno.ENFILE)


@final
@define(eq=False)
class SocketWatch:
    """Calls back in turns of the loop in which the socket is writable, from start() to stop()."""

    loop: asyncio.AbstractEventLoop
    _sock: socket.socket
    _on_writable: Callable[[], None]
    # Called if the socket is closed while it is watched. It must call stop().
    _on_closed: Callable[[], None]
    # The duplicate that the loop watches, or -1.
    _fd: int = field(init=False, default=-1)
    # Whether the loop watches the duplicate.
    _registered: bool = field(init=False, default=False)
    # The next call back, if it does not wait for the socket.
    _scheduled: asyncio.Handle | None = field(init=False, default=None)

    def start(self, *, writable: bool) -> None:
        """Call back in the next turn of the loop, or when the loop finds the socket writable.

        uvloop reports an error of a socket only once. So a socket that may be writable is not left
        to the loop: an attempt that failed to send is the last thing before the loop watches.

        Args:
            writable: whether to call back in the next turn.

        Raises:
            Exception: the socket is closed; or raised by the loop: it belongs to a transport.

        """
        if self._scheduled is not None or not self._open():
            return
        if writable:
            self._unregister()
            self._scheduled = self.loop.call_soon(self._writable)
        elif not self._registered:
            self._registered = True
            try:
                self.loop.add_writer(self._fd, self._writable)
            except BaseException:
                self.stop()
                raise

    def _open(self) -> bool:
        """Make the duplicate; or return False, and try again later, if no descriptor is free."""
        if self._fd >= 0:
            return True
        loop = self.loop
        # The loop refuses the descriptor of a transport. It would not recognize the duplicate.
        loop.remove_writer(self._sock.fileno())
        try:
            # No signal handler runs between the call and the assignment: map calls it from C.
            [self._fd] = map(os.dup, (self._sock.fileno(),))
        except OSError as exc:
            if is_interruption(exc) or exc.errno not in _EXHAUSTED:
                raise
            self._scheduled = loop.call_later(RETRY_INTERVAL, self._writable)
            return False
        checks = _checks_of(loop)
        checks.watches.add(self)
        checks.schedule(loop)
        return True

    def _unregister(self) -> None:
        if self._registered:
            with suppress_call_error(OSError):
                self.loop.remove_writer(self._fd)
            self._registered = False

    def stop(self) -> None:
        """Stop watching the socket. A call after an exception resumes."""
        if self._scheduled is not None:
            self._scheduled.cancel()
            self._scheduled = None
        if self._fd >= 0:
            _checks_of(self.loop).watches.discard(self)
            self._unregister()
            # No handler runs between these statements: the descriptor is closed once.
            fd, self._fd = self._fd, -1
            try:
                os.close(fd)
            except OSError as exc:
                # A failed close loses nothing: the connection is that of the socket.
                if is_interruption(exc):
                    raise

    def _writable(self) -> None:
        self._scheduled = None
        # The socket's number may belong to another connection by now.
        if self.check():
            self._on_writable()

    def __del__(self) -> None:
        if self._fd >= 0:  # the loop was closed without the writer
            os.close(self._fd)

    def check(self) -> bool:
        """Return whether the socket is open, if it is watched; call back if it was closed.

        Raises:
            BaseException: raised by a signal handler; the socket counts as closed.

        """
        is_open = False
        try:
            is_open = self._fd < 0 or self._is_open()
        finally:
            if not is_open:
                self._on_closed()  # stops this watch, too
        return is_open

    def _is_open(self) -> bool:
        fd = self._sock.fileno()
        if fd < 0:
            return False
        try:
            # After os.close() of its descriptor the socket still has the number, which may belong
            # to another file.
            return os.path.samestat(os.fstat(fd), os.fstat(self._fd))
        except OSError as exc:
            if is_interruption(exc):
                raise
            return exc.errno != errno.EBADF


@final
@define(eq=False)
class _Checks:
    """Checks the watched sockets of one loop, by one timer that runs while there are any.

    It has no reference to the loop, and only weak ones to the watches: it keeps nothing alive that
    a closed loop leaves behind.
    """

    watches: WeakSet[SocketWatch] = field(init=False, factory=WeakSet[SocketWatch])
    _scheduled: bool = field(init=False, default=False)

    def schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start the timer, if it is not running."""
        if not self._scheduled:
            loop.call_later(CHECK_INTERVAL, self._check, loop)
            self._scheduled = True

    def _check(self, loop: asyncio.AbstractEventLoop) -> None:
        self._scheduled = False
        try:
            for watch in list(self.watches):
                watch.check()
        finally:
            if self.watches:
                self.schedule(loop)


_checks: WeakKeyDictionary[asyncio.AbstractEventLoop, _Checks] = WeakKeyDictionary()


def _checks_of(loop: asyncio.AbstractEventLoop) -> _Checks:
    checks = _checks.get(loop)
    if checks is None:
        checks = _checks[loop] = _Checks()
    return checks
