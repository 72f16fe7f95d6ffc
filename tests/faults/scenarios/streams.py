"""send_to_stream on asyncio and uvloop.

What arrived is the first bytes of the content: at most `bytessent` of them, or more if a sendfile
of the loop was cut off, of which the batch counts nothing. If the call returned and the transport
did not fail later, everything has arrived. The batch holds exactly the rest.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from iobatch import IOBatch
from iobatch.aio import send_to_stream
from iobatch.aio._stream import READ_LIMIT
from tests.faults.delivery import SENDFILE_REFUSED, SENDS, Delivery, is_permanent
from tests.faults.harness import Interrupted, Run, scenario
from tests.faults.posting import difference, run_loop
from tests.faults.scenarios.aio import LIBUV, mixed
from tests.faults.shim import SIGNALS
from tests.support.batches import take
from tests.support.sockets import PATIENCE, stream_pair

if TYPE_CHECKING:
    import socket

    from tests.faults.shim import Fault


# If a handler raises in one of these, the transport loses the count of what it sent.
TRANSPORT = tuple(
    (call, kind)
    for call in ("send", "sendmsg", "sendfile", "write", "writev", "epoll_wait")
    for kind in SIGNALS
)


def with_large_file(run: Run) -> Delivery:
    """Return a batch with all kinds of entries, and a range for the loop's sendfile."""
    delivery = mixed(run)
    delivery.exact = False  # a handler may raise while the loop's sendfile runs
    delivery.file(READ_LIMIT + 1000)
    delivery.buffer(100)
    return delivery


async def send(run: Run) -> None:
    """Send a batch over a stream, and close the stream."""
    delivery = with_large_file(run)
    batch = delivery.batch
    loop = asyncio.get_running_loop()
    with stream_pair(buffers=100_000) as (sock, peer):
        peer.setblocking(False)
        loop.add_reader(peer, lambda: delivery.read(peer.fileno()))
        _, writer = await asyncio.open_connection(sock=sock.dup())
        sock.close()
        error = None
        with run.counting():
            async with asyncio.timeout(PATIENCE):
                try:
                    assert await send_to_stream(writer, batch) == len(delivery.content)
                except OSError as exc:
                    error = exc
                aborted = writer.is_closing()
                with suppress(OSError):
                    if not writer.is_closing():
                        writer.transport.set_write_buffer_limits(0)
                        await writer.drain()
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
        await asyncio.sleep(0)
        loop.remove_reader(peer)
        check(delivery, peer, error, aborted=aborted)


def check(delivery: Delivery, peer: socket.socket, error: OSError | None, *, aborted: bool) -> None:
    """Read the rest, and check everything.

    Args:
        delivery: what was sent.
        peer: where it arrived.
        error: what send_to_stream raised.
        aborted: whether the transport was closed then.

    """
    batch = delivery.batch
    peer.setblocking(True)
    with suppress(ConnectionResetError):
        delivery.read(peer.fileno())
    content, received = delivery.content, delivery.received
    assert content.startswith(received), difference(received, content)
    own = batch.error is not None or isinstance(error, Interrupted)
    assert error is None or own, "an error is not that of the batch"
    known = not (aborted or delivery.is_count_unknown(batch.error))
    assert not known or len(received) <= batch.bytessent, "bytes may follow a truncated range"
    rest = IOBatch()
    rest.extend(batch)
    left = take(rest)
    assert bytes(content[batch.bytessent :]) == left, "the batch does not hold exactly the rest"
    fault = delivery.run.fault
    if fault is None or is_harmless(fault):
        assert error is None, repr(error)
        assert received == content, difference(received, content)
    batch.reset()
    delivery.check_released()


def is_harmless(fault: Fault) -> bool:
    """Return whether everything must be sent."""
    if fault.call == "sendfile" and fault.kind in SENDFILE_REFUSED:
        return False  # it may be refused part-way, and is cut off then
    harmless = fault.call == "close" or (fault.call in SENDS and not is_permanent(fault))
    return harmless and not fault.signal


# The third close(2) is that of the file that the loop's sendfile has.
@scenario(
    silent=(3,),
    spared=(
        # Only asyncio makes these calls, and its transport waits for ever if one fails.
        *(("epoll_ctl", None), ("lseek", None)),
        *TRANSPORT,
    ),
)
def stream_on_asyncio(run: Run) -> None:
    run_loop(run, "asyncio", send(run))


@scenario(silent=(3,), spared=(*LIBUV, *TRANSPORT))
def stream_on_uvloop(run: Run) -> None:
    run_loop(run, "uvloop", send(run))
