"""Processes of multiprocessing: a socket goes to them, a batch does not."""

from __future__ import annotations

from iobatch import COMPILED
from tests.support.programs import run_python

# The child sends a batch of its own over the socket that it is given.
PROGRAM = """
import multiprocessing, pickle, random, socket
import iobatch

CHILD = '''
import iobatch
batch = iobatch.IOBatch()
batch.addbuf(content, on_release=lambda: print(iobatch.COMPILED, flush=True))
with sock:
    iobatch.iob_sendall(sock, batch)
'''

content = random.Random(1).randbytes(1_000_000)
for method in multiprocessing.get_all_start_methods():
    one, peer = socket.socketpair()
    names = {"sock": one, "content": content}
    child = multiprocessing.get_context(method).Process(target=exec, args=(CHILD, names))
    child.start()
    one.close()
    received = bytearray()
    with peer:
        while piece := peer.recv(1 << 20):
            received += piece
    child.join()
    print(method, received == content, child.exitcode, flush=True)
batch = iobatch.IOBatch()
batch.addbuf(content)
try:
    pickle.dumps(batch)
except TypeError as exc:
    print(exc)
"""


def test_each_start_method_gives_processes_that_send() -> None:
    result = run_python(PROGRAM, options=("-W", "error"))
    methods = "".join(f"{COMPILED}\n{name} True 0\n" for name in ("fork", "spawn", "forkserver"))
    refusal = "a batch can be neither copied nor pickled\n"
    assert (result.stdout, result.stderr) == (methods + refusal, "")
