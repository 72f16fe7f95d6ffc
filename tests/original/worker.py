"""A process that calls functions with a library, each call in a child process of its own.

libowfat crashes and hangs for some inputs, and keeps facts about descriptors in a global table: a
child process makes a crash or hang a result, and has a table without entries.

The process reads pickled jobs from its standard input, and answers to its standard output.
"""

from __future__ import annotations

import importlib
import os
import pickle
import select
import signal
import subprocess
import sys
import traceback
from typing import TYPE_CHECKING, Any, Self

from tests.original.libraries import Iobatch, Libowfat, Library
from tests.support.fakes import pure_copy
from tests.support.programs import ROOT, environment
from tests.support.sockets import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType
    from typing import BinaryIO

INSTALLED, PURE = "iobatch", "iobatch, pure"


class Killed(Exception):  # noqa: N818 # it is a result
    """The function's process ended by this signal; SIGKILL: it hung."""


class Worker:
    """The process, seen from the caller's side.

    Args:
        command: is put before the command that starts the process, as strace.

    """

    def __init__(self, command: Sequence[str] = ()) -> None:
        self.process = subprocess.Popen(
            [*command, sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env=environment(PYTHONDONTWRITEBYTECODE="1"),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.process.communicate()

    def call(self, library: str, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function of a module with a library and arguments; return what it returns.

        Raises:
            Killed: a signal ended the call's process.
            AssertionError: the function raised an exception; its traceback is the message.

        """
        assert self.process.stdin
        assert self.process.stdout
        pickle.dump((library, function, args), self.process.stdin)
        self.process.stdin.flush()
        kind, value = pickle.load(self.process.stdout)
        if kind == "killed":
            raise Killed(signal.Signals(value))
        assert kind == "returned", value
        return value


def answer(library: Library, function: Callable[..., Any], args: Sequence[Any]) -> tuple[str, Any]:
    """Call the function in a child process."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        status = 1
        try:
            os.close(reader)
            with os.fdopen(writer, "wb") as pipe:
                pipe.write(outcome(library, function, args))
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        if not select.select([pipe], [], [], PATIENCE)[0]:
            os.kill(pid, signal.SIGKILL)
        pickled = pipe.read()
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    return ("killed", -code) if code < 0 else pickle.loads(pickled)


def outcome(library: Library, function: Callable[..., Any], args: Sequence[Any]) -> bytes:
    try:
        return pickle.dumps(("returned", function(library, *args)))
    except Exception:  # noqa: BLE001 # the caller raises it
        return pickle.dumps(("raised", traceback.format_exc()))


def serve(jobs: BinaryIO, answers: BinaryIO) -> None:
    """Do jobs up to the end of the input."""
    iobatch = importlib.import_module("iobatch")
    libraries: dict[str, Library] = {
        library.name: library
        for library in (
            Libowfat(),
            Iobatch(INSTALLED, iobatch),
            Iobatch(PURE, pure_copy()["iobatch"]),
        )
    }
    while True:
        try:
            library, function, args = pickle.load(jobs)
        except EOFError:
            return
        answers.write(pickle.dumps(answer(libraries[library], function, args)))
        answers.flush()


if __name__ == "__main__":
    serve(sys.stdin.buffer, sys.stdout.buffer)
