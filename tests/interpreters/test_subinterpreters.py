"""Another interpreter in one process: it can't load the compiled module, and iobatch is pure there.

The module has state that only one interpreter may use.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from iobatch import COMPILED
from tests.support.batches import data
from tests.support.programs import UNMEASURED, run_python

if TYPE_CHECKING:
    from pathlib import Path

# Runs in each interpreter. The file is not cached, so a thread reads it for the writer.
USE = """
import asyncio, errno, socket, sys
sys.path[:] = {path!r}
import iobatch
from iobatch import _pagecache
from iobatch.aio import BatchWriter

def refuse(*_):
    raise BlockingIOError(errno.EAGAIN, "not in the cache")

def new_batch(released):
    batch = iobatch.IOBatch()
    batch.addbuf(bytearray(content * 3), on_release=lambda: released.append("hook"))
    batch.addfile({file!r})
    return batch

async def post(sock, peer, released):
    async with BatchWriter(sock) as writer:
        operation = writer.write(new_batch(released))
        received = bytearray()
        while len(received) < 4 * len(content):
            received += await asyncio.get_running_loop().sock_recv(peer, 1 << 20)
        return received == 4 * content and await operation == len(received)

with open({file!r}, "rb") as file:
    content = file.read()
one, peer = socket.socketpair()
with one, peer:
    one.setblocking(False)
    peer.setblocking(False)
    released = []
    batch = new_batch(released)
    received = bytearray()
    while iobatch.iob_send(one, batch) > 0:
        received += peer.recv(1 << 20)
    _pagecache._preadv = refuse
    is_right = asyncio.run(post(one, peer, released)) and received == 4 * content
    print(iobatch.COMPILED, is_right, *released, flush=True)
"""

PROGRAM = """
import sys
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
use = sys.argv[1]
exec(use)
if sys.version_info < (3, 12):
    # Its isolated ones refuse threads, and then asyncio.run() fails after a read-ahead.
    others = [interpreters.create(isolated=False)]
elif sys.version_info < (3, 13):
    others = [interpreters.create(isolated=isolated) for isolated in (True, False)]
else:
    others = [interpreters.create(config) for config in ("isolated", "legacy")]
for other in others:
    failure = interpreters.run_string(other, use)  # CPython 3.13 returns it, older ones raise it
    if failure is not None:
        sys.exit(failure.errdisplay)
    interpreters.destroy(other)
exec(use)
"""


def test_other_interpreters_send_and_post_in_pure_python(tmp_path: Path) -> None:
    """One that has a lock of its own, too; the first interpreter works as before."""
    (tmp_path / "file").write_bytes(data(100_000))
    use = USE.format(path=sys.path, file=str(tmp_path / "file"))
    result = run_python(PROGRAM, use, **UNMEASURED)
    others = 1 if sys.version_info < (3, 12) else 2
    first, other = f"{COMPILED} True hook hook\n", "False True hook hook\n"
    assert (result.stdout, result.stderr) == (first + others * other + first, "")
