"""iob_write with the callbacks of the standard library."""

from __future__ import annotations

import os
import socket
import ssl
from functools import partial
from typing import TYPE_CHECKING

from iobatch import iob_write
from tests.faults.delivery import Delivery
from tests.faults.harness import scenario
from tests.faults.scenarios.core import add_all_kinds, nonblocking
from tests.faults.tls import TLSClient

if TYPE_CHECKING:
    from tests.faults.harness import Run


@scenario()
def write_by_socket_send(run: Run) -> None:
    delivery = add_all_kinds(Delivery(run, exact=False))
    with nonblocking("unix", 8000) as (sock, peer):
        step = partial(iob_write, sock, delivery.batch, socket.socket.send)
        delivery.send(step, sock, peer)


@scenario()
def write_by_os_write(run: Run) -> None:
    """Write by offers that are shorter than the entries."""
    delivery = add_all_kinds(Delivery(run, exact=False))
    with nonblocking("unix", 1 << 20) as (sock, peer):
        step = partial(iob_write, sock.fileno(), delivery.batch, os.write, limit=9000)
        delivery.send(step, sock, peer)


@scenario()
def write_by_ssl_socket_send(run: Run) -> None:
    """Write by OpenSSL, which demands the same offer after "again"."""
    client = TLSClient()
    delivery = Delivery(run, exact=False, decode=client.decrypt, openssl=True)
    add_all_kinds(delivery)
    with nonblocking("unix", 16_000) as (sock, peer):
        conn = client.connect(peer, sock)
        step = partial(iob_write, conn, delivery.batch, ssl.SSLSocket.send)
        delivery.send(step, conn, peer)
