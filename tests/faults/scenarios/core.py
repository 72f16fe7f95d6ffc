"""iob_send and iob_write: buffers, ranges and owned files, to sockets, pipes and files."""

from __future__ import annotations

import socket

from iobatch import COPY_LIMIT, iob_send
from tests.faults.delivery import Delivery
from tests.faults.harness import Run, scenario
from tests.support.sockets import stream_pair

SMALL = 1000
LARGE = COPY_LIMIT + 5000


def mixed_batch(run: Run) -> Delivery:
    """Return a batch with all kinds of entries."""
    delivery = Delivery(run)
    delivery.buffer(200)
    delivery.file(SMALL)
    delivery.buffer(300, bytearray)
    delivery.file(SMALL + 1, owned=True)
    delivery.file(LARGE)
    delivery.buffer(400, hook=False)
    delivery.file(LARGE + 1, owned=True)
    delivery.buffer(20_000)
    delivery.buffer(20_001)
    delivery.file(SMALL + 2)
    return delivery


@scenario()
def send_to_tcp(run: Run) -> None:
    """Ranges among buffers: MSG_MORE, TCP_CORK, sendfile and sendmsg."""
    delivery = mixed_batch(run)
    with stream_pair("tcp4") as (sock, peer):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        sock.setblocking(False)
        peer.setblocking(False)
        step = lambda: iob_send(sock, delivery.batch)  # noqa: E731
        delivery.send(step, sock.fileno(), peer.fileno())
        assert not sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CORK), "a cork is left"
        delivery.finish(sock, peer)
