"""BatchWriter on asyncio and uvloop."""

from __future__ import annotations

import array
import os
import socket
from contextlib import suppress

from iobatch._pagecache import READ_AHEAD
from iobatch.aio import CancellationType, WriteStatus
from tests.faults.delivery import LARGE, READS, SMALL, Delivery
from tests.faults.disk import uncached
from tests.faults.harness import EVERY, Interrupted, Run, scenario
from tests.faults.posting import Posting, difference, run_loop
from tests.faults.shim import SIGNALS
from tests.faults.tls import TLSClient
from tests.support.sockets import stream_pair

# libuv ends the process if one of these fails.
LIBUV = tuple((call, None) for call in ("epoll_ctl", "epoll_wait", "write"))
# The selector of asyncio forgets what it has registered if a handler raises inside it.
SELECTOR = tuple(
    (call, kind) for call in ("epoll_ctl", "epoll_wait") for kind in ("signal", "signal+EINTR")
)


def mixed(run: Run) -> Delivery:
    """Return a batch with all kinds of entries."""
    delivery = Delivery(run)
    delivery.all_kinds()
    return delivery


def plain(run: Run, size: int) -> Delivery:
    """Return a batch with one buffer."""
    delivery = Delivery(run)
    delivery.buffer(size)
    return delivery


def small(run: Run) -> Delivery:
    """Return a batch whose range is read with the bytes, if it is cached."""
    delivery = Delivery(run)
    delivery.buffer(100, hook=False)
    delivery.file(SMALL, hook=False)
    return delivery


async def posted_writes(run: Run) -> None:
    """Call all methods that post, on a socket that is soon full."""
    with stream_pair(buffers=4096) as (sock, peer):
        posting = Posting(run, sock, peer)
        counts: list[int] = []
        posting.post(plain(run, 100))
        posting.post(small(run))
        posting.post(mixed(run))
        posting.post(plain(run, 5000), "write_some")
        posting.post(mixed(run), exactly=LARGE)
        buffer = Delivery(run)
        buffer.content += bytes(range(200))
        posting.record(
            buffer,
            lambda: posting.writer.write_buffer(
                bytes(buffer.content), lambda *arguments: counts.append(arguments[2])
            ),
        )
        await posting.wait()
        await posting.finish()
        assert len(counts) == 1 or posting.closed


# The last close(2) of a writer is that of its duplicate of the socket.
@scenario(silent=(4,), spared=SELECTOR)
def writer_on_asyncio(run: Run) -> None:
    run_loop(run, "asyncio", posted_writes(run))


@scenario(silent=(4,), spared=LIBUV)
def writer_on_uvloop(run: Run) -> None:
    run_loop(run, "uvloop", posted_writes(run))


async def writes_that_end_early(run: Run) -> None:
    """Cancel writes before their first byte and part-way."""
    with stream_pair(buffers=4096) as (sock, peer):
        # A write may be cancelled before it reports the error that ended a send.
        posting = Posting(run, sock, peer, fatal=frozenset())
        posting.post(plain(run, 100))
        first = posting.post(mixed(run))
        second = posting.post(plain(run, 1000))
        with run.counting():
            for operation, kind in (
                (second, CancellationType.TOTAL),
                (first, CancellationType.PARTIAL),
            ):
                if operation is not None and not operation.done():
                    with suppress(Interrupted):
                        assert operation.cancel(kind)
        posting.post(plain(run, 50))
        await posting.wait()
        await posting.finish(WriteStatus.DONE, WriteStatus.CANCELLED, WriteStatus.CANCELLED)


@scenario(silent=(2,), spared=SELECTOR)
def writer_that_cancels(run: Run) -> None:
    run_loop(run, "asyncio", writes_that_end_early(run))


async def write_that_times_out(run: Run) -> None:
    """Let a timeout end a write part-way, and the one after it."""
    with stream_pair(buffers=4096) as (sock, peer):
        posting = Posting(run, sock, peer)
        posting.post(mixed(run), timeout=0)
        posting.post(plain(run, 1000))
        await posting.wait()
        await posting.finish(WriteStatus.TIMEOUT)


@scenario(silent=(2,), spared=SELECTOR)
def writer_with_timeout(run: Run) -> None:
    run_loop(run, "asyncio", write_that_times_out(run))


async def writes_over_tls(run: Run) -> None:
    """Write through TLS, and end its stream."""
    with stream_pair(buffers=4096) as (sock, peer):
        client = TLSClient()
        conn = client.connect_filter(peer, sock)
        posting = Posting(run, sock, peer, through=conn)
        posting.post(plain(run, 100))
        posting.post(mixed(run))
        posting.record(Delivery(run), posting.writer.finish)
        await posting.wait()
        if not posting.closed:
            posting.check_statuses(())
        await posting.end()
        content = b"".join(bytes(delivery.content) for delivery, _ in posting.posts)
        received = client.decrypt(bytes(posting.received))
        assert content.startswith(received), difference(received, content)
        statuses = {operation and operation.status for _, operation in posting.posts}
        if client.ended or statuses == {WriteStatus.DONE}:
            assert client.ended
            assert received == content, difference(received, content)
        for delivery, operation in posting.posts:
            if operation is not None:
                rest = operation.batch.bytesleft
                assert operation.bytes_transferred + rest == len(delivery.content)
        posting.release()


@scenario(silent=(3,), spared=SELECTOR)
def writer_over_tls(run: Run) -> None:
    run_loop(run, "asyncio", writes_over_tls(run))


class MessagePosting(Posting):
    """Posts messages, with descriptors beside them."""

    def __init__(self, run: Run, sock: socket.socket, peer: socket.socket) -> None:
        super().__init__(run, sock, peer, reads=READS | {"getsockopt"})
        self.messages: list[bytes] = []
        self.passed: list[int] = []

    def read(self) -> None:
        with suppress(BlockingIOError):
            while True:
                message, fds, _, _ = socket.recv_fds(self.peer, 1 << 16, 1)
                if not message:
                    break
                self.messages.append(message)
                self.received += message
                self.passed += fds


async def posted_messages(run: Run) -> None:
    """Post more messages than the socket has room for, each with a descriptor."""
    sock, peer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with sock, peer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        posting = MessagePosting(run, sock, peer)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [peer.fileno()]))]
        for size in (100, 2000, 3000):
            delivery = plain(run, size)
            delivery.file(SMALL)
            posting.post(delivery, ancdata=rights)
        await posting.wait()
        expected = [
            bytes(delivery.content)
            for delivery, operation in posting.posts
            if operation is not None and operation.status is WriteStatus.DONE
        ]
        count = len(expected)
        await posting.finish()
        if not posting.closed:
            assert posting.messages[:count] == expected
            assert len(posting.passed) == count, "descriptors were passed more than once, or never"
        for fd in posting.passed:
            os.close(fd)


@scenario(
    spared=(
        *SELECTOR,
        # The kernel takes a message whole or not at all.
        ("sendmsg", "short"),
        ("sendmsg", "signal+short"),
        # It is never interrupted.
        ("getsockopt", "EINTR"),
    )
)
def writer_of_messages(run: Run) -> None:
    run_loop(run, "asyncio", posted_messages(run))


CALLS_OF_THREAD = ("pread", "posix_fadvise", "close")


async def writes_of_files_that_are_not_cached(run: Run) -> None:
    """Post ranges that a thread reads ahead."""
    with uncached() as disk, stream_pair() as (sock, peer):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
        posting = Posting(run, sock, peer)
        for size in (SMALL, READ_AHEAD + 5):
            delivery = Delivery(run)
            delivery.buffer(100)
            delivery.file(size)
            disk.end = 0
            with run.counting():  # without a gap, in which calls of the thread would not count
                posting.post(delivery)
                await posting.wait()
        await posting.finish()


@scenario(
    silent=EVERY,  # of duplicates of the files
    spared=(
        # How often the loop waits depends on the thread, which wakes it by send(2) at any time.
        *(("epoll_wait", None), ("send", None)),
        # A handler runs in the loop's thread, wherever this is then: in Posting.read(), too.
        *((call, kind) for call in CALLS_OF_THREAD for kind in SIGNALS),
    ),
)
def writer_that_reads_ahead(run: Run) -> None:
    run_loop(run, "asyncio", writes_of_files_that_are_not_cached(run))
