"""iob_sendall: it waits by epoll, and can be called again after each failure."""

from __future__ import annotations

import socket
import zlib
from functools import partial
from typing import TYPE_CHECKING, Any

from iobatch import iob_sendall
from iobatch.filters import Filter
from tests.faults.delivery import Delivery
from tests.faults.harness import Interrupted, scenario
from tests.faults.scenarios.core import add_all_kinds, nonblocking
from tests.support.fakes import again
from tests.support.sockets import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.faults.harness import Run

# The calls by which iob_sendall waits and sets O_NONBLOCK: their errors are raised, and the batch
# has none.
WAITS = frozenset(("epoll_create", "epoll_ctl", "epoll_wait", "ioctl"))


class Hesitant(socket.socket):
    """A socket that seems to be full before each send: so each send is waited for."""

    ready = False

    def hesitate(self) -> None:
        self.ready = not self.ready
        if self.ready:
            raise again()

    def send(self, *args: Any) -> int:
        self.hesitate()
        return super().send(*args)

    def sendmsg(self, *args: Any) -> int:
        self.hesitate()
        return super().sendmsg(*args)


def send_all(
    run: Run, delivery: Delivery, call: Callable[[], int], pipeline: Filter | None = None
) -> None:
    """Call iob_sendall until it has sent all, or the batch or the filter has failed."""
    batch = delivery.batch

    def has_failed() -> bool:
        return batch.error is not None or (pipeline is not None and pipeline.error is not None)

    for _ in range(3):
        before = batch.bytessent
        try:
            with run.counting():
                nbytes = call()
        except Interrupted:
            assert run.is_fault(Interrupted())
        except OSError as exc:
            if not (run.is_fault(exc) or delivery.is_count_unknown(exc)):
                raise
            waits = run.fault is not None and run.fault.call in {*WAITS, "close"}
            assert waits or has_failed(), "an error of no call that waits was raised"
        else:
            assert nbytes == batch.bytessent - before
            return
        if has_failed():
            return
    raise AssertionError("there is one fault, and more than one call failed")


@scenario(silent=(4,))  # that of the epoll object, which is raised
def sendall_with_timeout(run: Run) -> None:
    """Send within a timeout; the mode of the socket is restored."""
    delivery = add_all_kinds(Delivery(run, exact=False))
    with nonblocking("unix", 1 << 20) as (sock, peer):
        hesitant = Hesitant(fileno=sock.detach())
        hesitant.setblocking(True)
        send_all(run, delivery, partial(iob_sendall, hesitant, delivery.batch, timeout=PATIENCE))
        assert hesitant.getblocking()
        delivery.finish(hesitant, peer)


@scenario()
def sendall_through_filter(run: Run) -> None:
    """Send a batch, and what the filter holds after it."""
    delivery = Delivery(run, exact=False, decode=zlib.decompressobj(wbits=31).decompress)
    delivery.file(100_000)
    delivery.buffer(20_000, bytearray)
    with nonblocking("unix", 1 << 20) as (sock, peer):
        hesitant = Hesitant(fileno=sock.detach())
        pipeline = Filter(zlib.compressobj(wbits=31))
        call = partial(iob_sendall, hesitant, delivery.batch, pipeline)
        send_all(run, delivery, call, pipeline)
        # bytessent of the batch counts what the filter has taken.
        error = delivery.batch.error or pipeline.error
        delivery.check_error(error)
        while error is None and pipeline.finish(hesitant):
            pass
        hesitant.close()
        peer.setblocking(True)
        delivery.read(peer.fileno())
        assert delivery.received == delivery.content[: len(delivery.received)]
        assert error is not None or delivery.received == delivery.content
        delivery.batch.reset()
        delivery.check_released()
