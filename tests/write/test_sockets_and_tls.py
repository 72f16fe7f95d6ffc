"""The callbacks socket.socket.send, os.write and ssl.SSLSocket.send."""

from __future__ import annotations

import gzip
import os
import select
import selectors
import socket
import ssl
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest

from iobatch import IOB_AGAIN, IOB_DONE, IOB_ERROR, IOBatch, iob_write
from iobatch.filters import Chunked, Filter
from tests.support.batches import batch_of, data
from tests.support.drivers import pump
from tests.support.http import unchunk
from tests.support.sockets import PATIENCE, receive_all, stream_pair, wait_for_error
from tests.support.tls import tls_contexts
from tests.support.write import LARGE

if TYPE_CHECKING:
    from collections.abc import Iterator

    import trustme

    from tests.support.batches import MakeFile


def test_socket_send_and_os_write_are_callbacks(pair: Any, make_file: MakeFile) -> None:
    one, other = pair
    one.setblocking(False)
    content = data(LARGE)
    for step in (
        lambda sock, batch: iob_write(sock, batch, socket.socket.send),
        lambda sock, batch: iob_write(sock.fileno(), batch, os.write),
    ):
        batch = IOBatch()
        batch.addbuf(b"header")
        batch.addfile(make_file(content))
        assert pump(step, one, other, batch) == b"header" + content


def handshake(*sides: ssl.SSLSocket) -> None:
    """Complete the handshake of two non-blocking sides in one thread."""
    waiting = set(sides)
    while waiting:
        for side in list(waiting):
            with suppress(ssl.SSLWantReadError):
                side.do_handshake()
                waiting.discard(side)
        assert not waiting or select.select(waiting, [], [], PATIENCE)[0]


@contextmanager
def tls_pair(
    authority: trustme.CA, version: ssl.TLSVersion | None = None, *, buffers: int | None = None
) -> Iterator[tuple[ssl.SSLSocket, ssl.SSLSocket]]:
    """Yield the server's and the client's non-blocking socket after the handshake."""
    server, client = tls_contexts(authority, version)
    with stream_pair("tcp4", buffers=buffers) as (one, other):
        one.setblocking(False)
        other.setblocking(False)
        with (
            server.wrap_socket(one, server_side=True, do_handshake_on_connect=False) as conn,
            client.wrap_socket(
                other, server_hostname="localhost", do_handshake_on_connect=False
            ) as peer,
        ):
            handshake(conn, peer)
            yield conn, peer


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_16_mib_arrive_over_tls_at_a_slow_reader(
    make_file: MakeFile, version: ssl.TLSVersion, authority: trustme.CA
) -> None:
    content = data(16 * 1024 * 1024)
    wanted = bytearray()
    batch = IOBatch()
    fd = make_file(content)
    for i in range(1000):
        piece = data(i % 90 + 1, seed=i)
        batch.addbuf(piece if i % 2 else bytearray(piece))
        wanted += piece
        if i == 500:
            batch.addfile(fd)
            wanted += content
    received = bytearray()
    results = set()
    with (
        tls_pair(authority, version, buffers=30_000) as (conn, peer),
        selectors.DefaultSelector() as selector,
    ):
        selector.register(conn, selectors.EVENT_WRITE)
        selector.register(peer, selectors.EVENT_READ)
        buffer = bytearray(1 << 16)
        while len(received) < len(wanted):
            events = selector.select(PATIENCE)
            assert events, "neither side makes progress"
            for key, _ in events:
                if key.fileobj is conn:
                    nbytes = iob_write(conn, batch, ssl.SSLSocket.send)
                    results.add(min(nbytes, 1))
                    assert nbytes != IOB_ERROR, batch.error
                    if nbytes == IOB_DONE:
                        selector.unregister(conn)
                    else:
                        selector.modify(conn, batch.wants)
                    continue
                try:
                    count = peer.recv_into(buffer)
                except ssl.SSLWantReadError:
                    continue
                received += buffer[:count]
                while peer.pending():
                    count = peer.recv_into(buffer)
                    received += buffer[:count]
        # The peer may have read everything before iob_write was called once more.
        assert iob_write(conn, batch, ssl.SSLSocket.send) == IOB_DONE
    assert received == wanted
    assert results - {IOB_DONE} == {IOB_AGAIN, 1}


def test_filter_over_ssl_socket_send_goes_through_its_tls(authority: trustme.CA) -> None:
    batch = batch_of(content := data(LARGE))
    with (
        tls_pair(authority, buffers=30_000) as (conn, peer),
        ThreadPoolExecutor(1) as pool,
        selectors.DefaultSelector() as selector,
    ):
        peer.setblocking(True)
        received = pool.submit(receive_all, peer)
        body = Filter(zlib.compressobj(wbits=31), Filter(Chunked(), ssl.SSLSocket.send))
        selector.register(conn, body.wants)
        while code := (iob_write(conn, batch, body) or body.finish(conn)):
            assert code != IOB_ERROR
            if code == IOB_AGAIN:
                selector.modify(conn, body.wants)
                assert selector.select(PATIENCE)
        conn.setblocking(True)
        conn.shutdown(socket.SHUT_WR)
        assert gzip.decompress(unchunk(received.result(PATIENCE))) == content


def test_closed_tls_peer_is_a_permanent_error(authority: trustme.CA) -> None:
    with tls_pair(authority) as (conn, peer):
        peer.close()  # it has not read the session tickets, so the connection is reset
        wait_for_error(conn)
        batch = batch_of(data(1000))
        results = [iob_write(conn, batch, ssl.SSLSocket.send) for _ in range(3)]
    assert results[-1] == IOB_ERROR
    assert isinstance(batch.error, OSError)
