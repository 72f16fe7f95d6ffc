"""Whatever the caller does: RuntimeError or a right answer, never a crash or a lost count."""

from __future__ import annotations

import gc
import os
import weakref
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.batches import check_invariants, data
from tests.support.interruptions import drain, untraced
from tests.support.programs import run_python
from tests.support.sockets import PATIENCE, receive_all, stream_pair

if TYPE_CHECKING:
    from pathlib import Path

LARGE = 100_000  # the length of a file range that goes by sendfile


OWN_METHODS = """
import socket

class Own(socket.socket):
    def send(self, data, flags=0):
        print("its own send")
        return super().send(data, flags)

socket.socket = Own  # as gevent.monkey.patch_all() does
from iobatch import IOBatch, iob_send
one, peer = socket.socketpair()
batch = IOBatch()
batch.addbuf(b"abc")
print(iob_send(one, batch))
"""


def test_socket_class_with_methods_of_its_own_is_used_through_them() -> None:
    result = run_python(OWN_METHODS)
    assert (result.stdout, result.stderr) == ("its own send\n3\n", "")


def test_socket_that_a_hook_closes_is_not_confused_with_a_new_descriptor(
    lib: Any, tmp_path: Path
) -> None:
    """The number of the closed socket is free, and the next file that is opened gets it."""
    (tmp_path / "source").write_bytes(data(LARGE))
    opened: list[int] = []

    def close() -> None:
        number = one.fileno()
        one.close()
        opened.append(os.open(tmp_path / "other", os.O_RDWR | os.O_CREAT))
        assert opened == [number]

    batch = lib.IOBatch()
    with stream_pair() as (one, peer), (tmp_path / "source").open("rb") as source:
        batch.addbuf(b"first", on_release=close)
        batch.addfile(source, 0, LARGE)
        assert lib.iob_send(one, batch) == 5
        assert lib.iob_send(one, batch) == lib.IOB_ERROR
        assert receive_all(peer) == b"first"
        os.close(opened[0])
    assert not (tmp_path / "other").read_bytes()
    batch.reset()


def test_batch_in_a_cycle_with_its_hook_calls_the_callback_of_a_weak_reference(lib: Any) -> None:
    collected: list[object] = []
    batch = lib.IOBatch()
    batch.addbuf(b"data", on_release=partial(repr, batch))
    batch.addfile(0, 0, 10)
    reference = weakref.ref(batch, collected.append)
    del batch
    gc.collect()
    assert collected == [reference]


DAMAGE = """
import gc, socket, sys
from contextlib import suppress
from iobatch import IOBatch, iob_send, iob_sendmsg, iob_write

sys.unraisablehook = lambda args: None
one, peer = socket.socketpair()
one.setblocking(False)
USES = [
    lambda batch: iob_send(one, batch),
    lambda batch: iob_send(one, batch, limit=3),
    lambda batch: iob_sendmsg(one, batch),
    lambda batch: iob_write(one, batch, lambda sock, view: len(view) // 2),
    lambda batch: batch.addbufs([b"more"] * 100),
    lambda batch: batch.prepend(b"more"),
    lambda batch: IOBatch().extend(batch),
    lambda batch: batch.reset(),
    repr,
]
DAMAGES = [None, 5, b"", bytes(100_000), (1, 2), (), ("a",) * 5, (0, 0, 99, 0, 0), "text"]
for use in USES:
    for damage in DAMAGES:
        for where in (0, 1, -1, "all", "cleared"):
            batch = IOBatch()
            batch.addbufs([b"some", bytearray(b"thing"), b"more"] * 10)
            queue = batch._core.queue
            for slots in [each for each in gc.get_referents(queue) if type(each) is list]:
                if where == "cleared":
                    slots.clear()
                elif where == "all":
                    slots[:] = [damage] * len(slots)
                else:
                    slots[where] = damage
            for _ in range(2):
                with suppress(Exception):
                    use(batch)
print("survived")
"""


def test_list_inside_a_batch_that_is_changed_from_outside_causes_no_crash() -> None:
    """The garbage collector's functions lead to it; any exception will do."""
    result = run_python(DAMAGE)
    assert result.stdout == "survived\n", result.stderr


def test_memory_that_runs_out_at_any_allocation_of_a_send_loses_and_repeats_no_byte(
    lib: Any, tmp_path: Path
) -> None:
    """Where the number of bytes is unknown, the batch has failed."""
    testcapi = pytest.importorskip("_testcapi", reason="install libpython3-testsuite")
    content = data(20_000)
    (tmp_path / "file").write_bytes(content)
    with stream_pair() as (one, peer), (tmp_path / "file").open("rb") as file:
        one.setblocking(False)
        peer.setblocking(False)
        for limit in (1, 7, 25, 600, 21_000):
            for allocation in range(40):
                batch = lib.IOBatch()
                batch.addbufs([b"first", b"second", bytearray(b"third")] if limit % 2 else [b"12"])
                batch.addbufs([content[:300]] * 2)
                batch.addfile(file.fileno(), 0, 20_000)
                total = batch.bytesleft
                with untraced():
                    testcapi.set_nomemory(allocation, allocation + 1)
                    try:
                        lib.iob_send(one, batch, limit=limit)
                    except MemoryError:
                        pass
                    finally:
                        testcapi.remove_mem_hooks()
                received = len(drain(peer))
                if batch.error is None:
                    assert batch.bytessent == received
                    with suppress(BlockingIOError):
                        lib.iob_sendall(one, batch, timeout=PATIENCE)
                    check_invariants(batch)
                    assert received + len(drain(peer)) == total
                batch.reset()
