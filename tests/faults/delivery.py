"""A batch that a scenario sends: what should arrive, what did, and the facts true of both.

After each step `bytesleft` and `bytessent` add up to the length of the content. At the end:

- what arrived is exactly the first `bytessent` bytes of the content, and after IOB_DONE all of it;
- what a failed batch still holds is exactly the rest, which extend() moves to another batch;
- each hook has run once, in order;
- the error of a failed batch is that of the fault, and a fault that must not matter made none.

After the exception of a signal handler all of this holds too, and the batch can go on, unless it
reports that the count is unknown, which only the pure form may do: then at least the counted bytes
have arrived.
"""

from __future__ import annotations

import errno
import os
import select
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from iobatch import COMPILED, IOB_AGAIN, IOB_DONE, IOB_ERROR, IOBatch
from tests.faults.harness import Interrupted
from tests.support.batches import check_invariants, data, take
from tests.support.sockets import PATIENCE

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from tests.faults.harness import Run

# A failure of these calls must not matter: options and advice are not needed to send, and
# sys.unraisablehook reports that a file can't be closed.
HARMLESS_CALLS = frozenset(("setsockopt", "getsockopt", "posix_fadvise", "close"))
# These faults must not matter, whatever the call.
HARMLESS_KINDS = frozenset(("EAGAIN", "EINTR", "short", "signal", "signal+EINTR", "signal+short"))
# After these errors of sendfile(2) the range is read.
SENDFILE_REFUSED = frozenset(("EINVAL", "ENOSYS"))
# The compiled form leaves a range that it can't read to the pure form, which reads it again.
READS = frozenset(("pread", "preadv2"))


class Delivery:
    """A batch and its content."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.batch = IOBatch()
        self.content = bytearray()
        self.received = bytearray()
        self.hooks = 0
        self.released: list[int] = []
        self.fds: list[int] = []

    # Adding, with no fault

    def buffer(self, size: int, kind: Callable[[bytes], Any] = bytes, *, hook: bool = True) -> None:
        """Add a buffer."""
        content = self._next(size)
        self.batch.addbuf(kind(content), on_release=self._hook() if hook else None)

    def file(self, size: int, *, owned: bool = False) -> None:
        """Add a range that starts in the middle of a file."""
        fd = os.open(self.path(size + 7), os.O_RDONLY)
        self.content += data(size + 7, seed=size + 7)[7:]
        if owned:
            self.batch.addfile_close(fd, 7, size)
        else:
            self.batch.addfile(fd, 7, size, on_release=self._hook())
            self.fds.append(fd)

    def path(self, size: int) -> str:
        """Return the path of a file of random content, seeded by its size."""
        path = self.run.folder / str(size)
        if not path.exists():
            path.write_bytes(data(size, seed=size))
        return str(path)

    def _next(self, size: int) -> bytes:
        content = data(size, seed=len(self.content))
        self.content += content
        return content

    def _hook(self) -> Callable[[], object]:
        self.hooks += 1
        return partial(self.released.append, self.hooks)

    # Sending

    def send(self, step: Callable[[], int], sock: int, peer: int) -> None:
        """Call `step` until the batch is empty or has failed; end the stream, and check all.

        Args:
            step: sends once, and returns as iob_send.
            sock: the descriptor that it sends to, which is non-blocking.
            peer: the non-blocking descriptor that it arrives at.

        """
        code = self.step(step)
        while code not in {IOB_DONE, IOB_ERROR}:
            self.read(peer)
            if code == IOB_AGAIN:
                while not select.select([peer], [sock], [], PATIENCE)[1]:
                    self.read(peer)
            code = self.step(step)
        assert (code == IOB_ERROR) == (self.batch.error is not None)

    def step(self, step: Callable[[], int]) -> int:
        """Call `step` once; the exception of a handler counts as some bytes that were sent."""
        sent = self.batch.bytessent
        try:
            with self.run.counting():
                code = step()
        except Interrupted:
            assert self.run.is_fault(Interrupted())
            code = 1  # now entries may still have to be released
        else:
            counted = self.batch.bytessent - sent
            assert counted == max(code, 0), f"{code} was returned, and {counted} bytes counted"
            check_invariants(self.batch)
        assert self.batch.bytesleft + self.batch.bytessent == len(self.content)
        return code

    def read(self, peer: int) -> None:
        """Read what has arrived."""
        with suppress(BlockingIOError):
            while piece := os.read(peer, 1 << 20):
                self.received += piece

    def finish(self, sock: socket.socket, peer: socket.socket) -> None:
        """End the stream, read the rest, and check everything."""
        sock.close()
        peer.setblocking(True)
        with suppress(ConnectionResetError):
            self.read(peer.fileno())
        self.check()

    def check(self) -> None:
        """Check everything at the end, and release what is left."""
        content, received, batch = bytes(self.content), bytes(self.received), self.batch
        error = batch.error
        self.check_error(error)
        assert received == content[: len(received)], "what arrived is no prefix of the content"
        if self.is_count_unknown(error):
            assert len(received) >= batch.bytessent
        else:
            assert len(received) == batch.bytessent
            assert error is not None or received == content
            rest = IOBatch()
            rest.extend(batch)
            assert received + take(rest) == content, "the batch does not hold exactly the rest"
        batch.reset()
        assert self.released == list(range(1, self.hooks + 1)), f"hooks ran: {self.released}"
        for fd in self.fds:
            os.close(fd)

    def is_count_unknown(self, error: OSError | None) -> bool:
        """Return whether a handler's exception has made the count unknown."""
        fault = self.run.fault
        return (
            error is not None
            and fault is not None
            and fault.signal
            and not COMPILED
            and error.errno == errno.EIO
            and "unknown" in str(error)
        )

    def check_error(self, error: OSError | None) -> None:
        """Check the error of the batch, or that there is none."""
        fault = self.run.fault
        if fault is None or is_harmless(fault.call, fault.kind):
            assert error is None or self.is_count_unknown(error), f"the batch failed: {error!r}"
        elif error is None:
            assert fault.call in READS, "the batch must have failed"
        else:
            assert self.run.is_fault(error), f"the batch failed by something else: {error!r}"


def is_harmless(call: str, kind: str) -> bool:
    """Return whether a batch must be sent in spite of a fault."""
    return (
        call in HARMLESS_CALLS
        or kind in HARMLESS_KINDS
        or (call == "sendfile" and kind in SENDFILE_REFUSED)
    )
