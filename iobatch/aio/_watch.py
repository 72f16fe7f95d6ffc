"""Watching a socket until the event loop reports it writable."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from attrs import define, field

from iobatch._errors import suppress_call_error

if TYPE_CHECKING:
    import asyncio
    import socket
    from collections.abc import Callable


@final
@define(eq=False)
class SocketWatch:
    """Calls back each time the loop finds the socket writable, from start() to stop()."""

    loop: asyncio.AbstractEventLoop
    _sock: socket.socket
    _callback: Callable[[], None]
    # The descriptor that the loop watches, or -1.
    _fd: int = field(init=False, default=-1)

    def start(self) -> None:
        """Watch the socket, if it is not watched yet.

        Raises:
            Exception: raised by the loop: the socket is closed, or belongs to a transport.

        """
        if self._fd < 0:
            fd = self._sock.fileno()
            self.loop.add_writer(fd, self._callback)
            self._fd = fd

    def stop(self) -> None:
        """Stop watching the socket."""
        if self._fd >= 0:
            # A socket that the caller has closed is not watched any more.
            with suppress_call_error(OSError):
                self.loop.remove_writer(self._fd)
            self._fd = -1
