"""The end of an interpreter while bytes are unsent: its status is right, and it prints nothing.

The one message is the ResourceWarning of a batch that owns a file, where such warnings are shown.
Each program here leaves with the status 3, and its objects are alive to the end.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.support.loops import LOOPS
from tests.support.programs import run_python

if TYPE_CHECKING:
    from pathlib import Path

# The sockets stay open to the end, and are closed without a warning.
PROLOGUE = """
import asyncio, importlib, os, socket, sys, threading
import iobatch
from iobatch import *
from iobatch.aio import BatchWriter

path = sys.argv[1]
sockets = []

def new_pair():
    pair = [socket.socket(fileno=each.detach()) for each in socket.socketpair()]
    sockets.extend(pair)
    pair[0].setblocking(False)
    return pair

def new_batch(name):
    batch = IOBatch()
    batch.addbuf(bytearray(1_000_000), on_release=lambda: os.write(1, name.encode() + b" "))
    return batch

def leave():
    while sockets:
        sockets.pop().detach()
    sys.exit(3)
"""

# A hook runs when the interpreter collects its batch.
BATCHES = """
unsent = new_batch("unsent")
half_sent = new_batch("half-sent")
assert iob_send(new_pair()[0], half_sent) > 0
pinned = new_batch("pinned")
assert iob_write(None, pinned, lambda sock, view: -1) == IOB_AGAIN
half_sent_offer = new_batch("half-sent-offer")
answers = iter([5, -1])
assert iob_write(None, half_sent_offer, lambda sock, view: next(answers)) == 5
failed = new_batch("failed")
assert iob_write(None, failed, lambda sock, view: -3) == IOB_ERROR
cycle = new_batch("cycle")
cycle.addbuf(b"x", on_release=lambda batch=cycle: None)
leave()
"""
HOOKS = ["cycle", "failed", "half-sent", "half-sent-offer", "pinned", "unsent"]

OWNED = """
owned = IOBatch()
owned.addfile(path)
leave()
"""

WRITERS = """
new_loop = importlib.import_module(sys.argv[2]).new_event_loop
kept = []

async def post():
    writer = BatchWriter(new_pair()[0], timeout=60, stall_timeout=60)
    batch = new_batch("posted")
    batch.addfile(path)
    kept.extend([writer, writer.write(batch), writer.write(new_batch("second"))])

async def main():
    await post()
    leave()
"""
# How each program ends.
ENDINGS = {
    "the loop runs": "with asyncio.Runner(loop_factory=new_loop) as runner: runner.run(main())",
    "the loop is closed": "loop = new_loop()\n"
    "loop.run_until_complete(post())\nloop.close()\nleave()",
    "the loop is never closed": "loop = new_loop()\nloop.run_until_complete(post())\nleave()",
}

# The read ends after the main thread has ended, just before the interpreter waits for threads.
READ_AHEAD = """
import errno
import concurrent.futures.thread
from iobatch import _pagecache

reads, ends = threading.Event(), threading.Event()
threading._register_atexit(ends.set)

def refuse(*_):
    raise BlockingIOError(errno.EAGAIN, "not in the cache")

def read(*_):
    reads.set()
    ends.wait()
    os.write(1, b"read")
    return b""

_pagecache._preadv, _pagecache.pread = refuse, read

async def main():
    writer = BatchWriter(new_pair()[0])
    batch = IOBatch()
    with open(path, "rb") as file:
        batch.addfile(file, 0, 100, on_release=lambda: None)
        operation = writer.write(batch)
        reads.wait()
        _pagecache._preadv = _pagecache.pread = None  # they would keep this module alive
        leave()

loop = asyncio.new_event_loop()
loop.run_until_complete(main())
"""

DAEMONS = """
calls = {
    "iob_send": iob_send,
    "iob_sendmsg": iob_sendmsg,
    "iob_write": lambda sock, batch: iob_write(sock, batch, socket.socket.send, limit=None),
    "iob_sendall": iob_sendall,
    "iob_sendall with a timeout": lambda sock, batch: iob_sendall(sock, batch, timeout=60),
}
for name, call in calls.items():
    one, peer = new_pair()
    one.setblocking(True)
    threading.Thread(target=call, args=(one, new_batch(name)), daemon=True).start()
    assert peer.recv(1)
sys.exit(3)
"""


def run(program: str, *args: str | Path, dev: bool = True) -> tuple[str, str]:
    """Run a program, which must leave with the status 3; return its stdout and stderr."""
    options = ("-X", "dev") if dev else ()
    result = run_python(PROLOGUE + program, *map(str, args), options=options)
    assert result.returncode == 3, result.stderr
    return result.stdout, result.stderr


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "file"
    file.write_bytes(b"content")
    return file


def test_hooks_of_unsent_batches_run_at_the_end(path: Path) -> None:
    stdout, stderr = run(BATCHES, path)
    assert (sorted(stdout.split()), stderr) == (HOOKS, "")


def test_owned_file_is_reported_once_where_such_warnings_are_shown(path: Path) -> None:
    _, stderr = run(OWNED, path)
    assert re.fullmatch(r".*: ResourceWarning: unclosed file in <IOBatch .*>\n", stderr)
    assert run(OWNED, path, dev=False) == ("", "")


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("ending", ENDINGS)
def test_writer_with_pending_writes_ends_in_silence(ending: str, loop: str, path: Path) -> None:
    """It owns a file, and asyncio may warn of its loop: so ResourceWarnings are not shown."""
    pytest.importorskip("uvloop", reason="install it (pip install uvloop)")
    _, stderr = run(WRITERS + ENDINGS[ending], path, loop, dev=False)
    assert stderr == ""


def test_interpreter_waits_for_a_thread_that_reads_ahead(path: Path) -> None:
    assert run(READ_AHEAD, path, dev=False) == ("read", "")


@pytest.mark.parametrize("dev", [False, True])
def test_daemon_threads_that_wait_in_a_send_are_left_behind(path: Path, *, dev: bool) -> None:
    """No hook runs: the batches are in use."""
    assert run(DAEMONS, path, dev=dev) == ("", "")
