"""Output that neither delays nor ends the server, whatever its descriptor leads to."""

from __future__ import annotations

import os
from collections import deque
from contextlib import suppress
from threading import Lock, Thread
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
# Among the pieces: the file is opened anew here.
_REOPEN = b""


@define(eq=False)
class Output:
    """Writes to a descriptor in a thread.

    Any write may wait: a terminal or a pipe may be full although poll(2) reports it as writable,
    because other processes write to it as well, and a file's disk or server may be slow. O_NONBLOCK
    does not help: all processes that share the open file would see it.

    The thread runs while there is something to write, so a process that writes nothing can fork.
    """

    _fd: int
    # The file's path, if it can be opened anew.
    _path: str = ""
    # Each is the data of one write, the rest of a partial write, or _REOPEN. Only the thread
    # removes any.
    _pieces: deque[bytes] = field(init=False, factory=deque[bytes])
    # A part of the first piece is written.
    _begun: bool = field(init=False, default=False)
    # A diagnostic of the thread, which resume() reports. So the diagnostics have one writer.
    _failure: str = field(init=False, default="")
    _thread: Thread = field(init=False, factory=Thread)
    # The thread has found nothing more to write, and ends. Another one writes what is added now.
    _ending: bool = field(init=False, default=False)
    # Held while the thread begins to end, and while another one is started.
    _lock: Lock = field(init=False, factory=Lock)

    def __bool__(self) -> bool:
        return bool(self._pieces or self._failure)

    def write(self, piece: bytes) -> None:
        """Add a piece. It is lost if too many wait already, or if the write fails."""
        if len(self._pieces) < MAX_WAITING:
            self._pieces.append(piece)
        if len(self._pieces) > MAX_HELD:
            self.resume()

    def reopen(self) -> None:
        """Open the file anew for what is added from now on, and close the old one.

        If that fails, a later call of resume() or finish() reports it, and the old file stays.
        """
        self._pieces.append(_REOPEN)  # also beyond MAX_WAITING: only lines may be lost
        self.resume()

    def resume(self) -> None:
        """Write all pieces, in the thread."""
        self._report_failure()
        with self._lock:
            if self._pieces and (self._ending or not self._thread.is_alive()):
                self._ending = False
                self._thread = Thread(target=self._run, daemon=True)
                with suppress(RuntimeError):  # the system has no room for a thread
                    self._thread.start()

    def finish(self) -> None:
        """Wait until everything is written, but not for longer than PATIENCE_AT_END."""
        self.resume()
        if self._thread.is_alive():
            self._thread.join(PATIENCE_AT_END)
        self._report_failure()

    def drop(self) -> None:
        """Drop what is unwritten. Its parent writes it, if this process was just forked."""
        self._pieces.clear()
        self._begun = False
        self._failure = ""
        self._lock = Lock()  # the parent's thread may have held it

    def _report_failure(self) -> None:
        if self._failure:
            failure, self._failure = self._failure, ""
            report(failure)

    def _run(self) -> None:
        while True:
            self._write_pieces()
            with self._lock:
                # The rest of a piece that can't be written stays.
                if len(self._pieces) == self._begun:
                    self._ending = True
                    return

    def _write_pieces(self) -> None:
        pieces = self._pieces
        while pieces:
            if pieces[0] == _REOPEN:
                self._open_anew()
                pieces.popleft()
                continue
            try:
                rest = pieces[0][os.write(self._fd, pieces[0]) :]
            except BlockingIOError:
                sleep(RETRY_DELAY)
            except OSError:
                if not self._lose():
                    return
            else:
                self._begun = bool(rest)
                if rest:
                    pieces[0] = rest
                else:
                    pieces.popleft()

    def _lose(self) -> bool:
        """Remove the pieces that can't be written; return whether another file follows them."""
        pieces, begun = self._pieces, self._begun
        while len(pieces) > begun and pieces[begun] != _REOPEN:
            del pieces[begun]
        if len(pieces) == begun:
            # The rest of a piece stays: without it the next line would continue a cut one.
            return False
        if begun:
            pieces.popleft()
            self._begun = False
        return True

    def _open_anew(self) -> None:
        try:
            fd = open_log(self._path)
        except OSError as exc:
            self._failure = f"{self._path}: {exc.strerror}; the log goes on in the old file"
            return
        os.dup2(fd, self._fd, inheritable=False)
        os.close(fd)


def open_log(path: str) -> int:
    """Return a descriptor that appends to a file, which is created if it is missing.

    Raises:
        OSError: the file can't be opened.

    """
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)


STDERR = Output(2)


def report(message: str) -> None:
    """Write a diagnostic to the standard error output, if that is possible."""
    STDERR.write(f"iobatch.httpd: {message}\n".encode(errors="backslashreplace"))
    STDERR.resume()
