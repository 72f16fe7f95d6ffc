"""iob_sendmsg: messages, ancillary data, and a stream."""

from __future__ import annotations

import array
import os
import socket
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from iobatch import iob_sendmsg
from tests.faults.delivery import READS, SMALL, Delivery
from tests.faults.harness import scenario
from tests.faults.scenarios.core import add_all_kinds, nonblocking

if TYPE_CHECKING:
    from tests.faults.harness import Run

# The kernel sends a message whole or not at all. getsockopt(2) is never interrupted.
SPARED = (("sendmsg", "short"), ("sendmsg", "signal+short"), ("getsockopt", "EINTR"))


def send_message(run: Run, kind: socket.SocketKind, *, with_descriptor: bool = False) -> None:
    """Send a message of buffers and ranges, and check that all of it arrives or nothing."""
    # The size of the socket's buffer tells whether the message can be sent at all.
    delivery = Delivery(run, exact=False, reads=READS | {"getsockopt"})
    delivery.buffer(200)
    delivery.file(SMALL)
    delivery.buffer(300, bytearray)
    delivery.file(40_000, owned=True)
    sock, peer = socket.socketpair(socket.AF_UNIX, kind)
    sock.setblocking(False)
    peer.setblocking(False)
    ancdata = []
    if with_descriptor:
        fd = os.open(delivery.path(SMALL), os.O_RDONLY)
        ancdata.append((socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd])))
    code = 1
    while code != 0 and delivery.batch.error is None:
        code = delivery.step(partial(iob_sendmsg, sock, delivery.batch, ancdata))
        with suppress(BlockingIOError):
            message, received, _, _ = peer.recvmsg(1 << 20, 1 << 10)
            assert len(received) == len(ancdata)
            for _, _, descriptors in received:
                os.close(int.from_bytes(descriptors, "little"))
            delivery.received += message
    if with_descriptor:
        os.close(fd)
    assert len(delivery.received) in {0, len(delivery.content)}
    sock.close()
    peer.close()
    delivery.check()


@scenario(spared=SPARED)
def send_datagram(run: Run) -> None:
    send_message(run, socket.SOCK_DGRAM)


@scenario(spared=SPARED)
def send_descriptor(run: Run) -> None:
    """Send a descriptor along, which arrives with the message."""
    send_message(run, socket.SOCK_SEQPACKET, with_descriptor=True)


@scenario()
def send_message_on_stream(run: Run) -> None:
    """Send to a stream socket, which may take a part of the message."""
    delivery = add_all_kinds(Delivery(run, exact=False))
    with nonblocking("unix", 8000) as (sock, peer):
        delivery.send(partial(iob_sendmsg, sock, delivery.batch), sock, peer)
