"""Output that neither delays nor ends the server, whatever its descriptor leads to."""

from __future__ import annotations

import os
from collections import deque
from contextlib import suppress
from threading import Thread
from time import sleep

from attrs import define, field

# The most pieces that wait for a slow reader. Further ones are lost.
MAX_WAITING = 256
# The pieces that are written without a call of resume(). A thread that starts, and runs beside the
# loop, costs as much as 40 requests.
MAX_HELD = 64
# Seconds before a non-blocking descriptor that takes nothing is tried again. poll(2) would not
# help: a terminal may be writable and have no room for a newline.
RETRY_DELAY = 0.05
# Seconds that a process waits at its end for what is unwritten.
PATIENCE_AT_END = 1.0


@define(eq=False)
class Output:
    """Writes to a descriptor in a thread.

    Any write may wait: a terminal or a pipe may be full although poll(2) reports it as writable,
    because other processes write to it as well, and a file's disk or server may be slow. O_NONBLOCK
    does not help: all processes that share the open file would see it.

    The thread runs while there is something to write, so a process that writes nothing can fork.
    """

    _fd: int
    # Each is the data of one write, or the rest of a partial write. Only the thread removes any.
    _pieces: deque[bytes] = field(init=False, factory=deque[bytes])
    # A part of the first piece is written.
    _begun: bool = field(init=False, default=False)
    _thread: Thread = field(init=False, factory=Thread)

    def __bool__(self) -> bool:
        return bool(self._pieces)

    def write(self, piece: bytes) -> None:
        """Add a piece. It is lost if too many wait already, or if the write fails."""
        if len(self._pieces) < MAX_WAITING:
            self._pieces.append(piece)
        if len(self._pieces) > MAX_HELD:
            self.resume()

    def resume(self) -> None:
        """Write all pieces, in the thread."""
        if self._pieces and not self._thread.is_alive():
            self._thread = Thread(target=self._run, daemon=True)
            with suppress(RuntimeError):  # the system has no room for a thread
                self._thread.start()

    def finish(self) -> None:
        """Wait until everything is written, but not for longer than PATIENCE_AT_END."""
        self.resume()
        if self._thread.is_alive():
            self._thread.join(PATIENCE_AT_END)

    def _run(self) -> None:
        pieces = self._pieces
        while pieces:
            try:
                rest = pieces[0][os.write(self._fd, pieces[0]) :]
            except BlockingIOError:
                sleep(RETRY_DELAY)
            except OSError:
                # The rest of a piece stays: without it the next line would continue a cut one.
                while len(pieces) > self._begun:
                    pieces.pop()
                return
            else:
                self._begun = bool(rest)
                if rest:
                    pieces[0] = rest
                else:
                    pieces.popleft()


STDERR = Output(2)


def report(message: str) -> None:
    """Write a diagnostic to the standard error output, if that is possible."""
    STDERR.write(f"iobatch.httpd: {message}\n".encode(errors="backslashreplace"))
    STDERR.resume()
