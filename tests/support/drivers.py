"""The functions that send a batch, under one signature, so that one test covers them all."""

from __future__ import annotations

import os
import select
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from iobatch import IOB_AGAIN, IOB_DONE, IOB_ERROR, IOBatch, iob_send, iob_write
from tests.support.batches import check_invariants
from tests.support.forms import pure
from tests.support.sockets import PATIENCE, receive

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Step = Callable[[Any, IOBatch], int]

DRIVERS = (
    "send",
    "send without sendfile",
    "send without sendmsg",
    "send by the portable path",
    "send to a descriptor",
    "send to a descriptor by the portable path",
    "write by socket.send",
    "write by os.write",
)
SEND_DRIVERS = DRIVERS[:4]


@contextmanager
def driver(name: str) -> Iterator[Step]:
    """Yield a function that calls iob_send or iob_write once, in the way that `name` describes."""
    with pytest.MonkeyPatch.context() as patch:
        send = iob_send if name in {"send", "send to a descriptor"} else pure(iob_send)
        if "without sendfile" in name or "portable" in name:
            patch.setattr("iobatch._send._sendfile", None)
        if "without sendmsg" in name or "portable" in name:
            patch.setattr("iobatch._send._HAS_SENDMSG", False)
        if name.startswith("send to a descriptor"):
            yield lambda sock, batch: send(sock.fileno(), batch)
        elif name.startswith("send"):
            yield send
        elif name == "write by socket.send":
            yield lambda sock, batch: iob_write(sock, batch, socket.socket.send)
        else:
            yield lambda sock, batch: iob_write(sock.fileno(), batch, os.write)


def pump(step: Step, sock: Any, peer: Any, batch: IOBatch) -> bytes:
    """Step until the batch is empty, reading whenever the socket is full; return what arrived."""
    fd = peer if isinstance(peer, int) else peer.fileno()
    start = batch.bytessent
    received = bytearray()
    for _ in range(1_000_000):
        nbytes = step(sock, batch)
        check_invariants(batch)
        if nbytes == IOB_ERROR:
            raise AssertionError(batch.error)
        if nbytes == IOB_DONE:
            break
        if nbytes == IOB_AGAIN:
            assert select.select([fd], [], [], PATIENCE)[0], (
                "IOB_AGAIN, but the peer has nothing to read"
            )
            received += os.read(fd, 1 << 16)
    assert not batch.bytesleft
    received += receive(peer, batch.bytessent - start - len(received))
    return bytes(received)
