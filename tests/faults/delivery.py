"""A batch that a scenario sends: what should arrive, what did, and the facts true of both.

After each step `bytesleft` and `bytessent` add up to the length of the content. At the end:

- what arrived is exactly the first `bytessent` bytes of the content, and after IOB_DONE all of it;
- what a failed batch still holds is exactly the rest, which extend() moves to another batch;
- each hook has run once, in order;
- the error of a failed batch is that of the fault, and a fault that must not matter made none.

After the exception of a signal handler all of this holds too, and the batch can go on, unless it
reports that the count is unknown, which it may do unless `exact`: then at least the counted bytes
have arrived.
"""

from __future__ import annotations

import errno
import os
import select
from contextlib import suppress
from functools import partial
from ssl import SSLError
from typing import TYPE_CHECKING, Any, Protocol

from iobatch import COMPILED, COPY_LIMIT, IOB_AGAIN, IOB_DONE, IOB_ERROR, IOBatch
from tests.faults.harness import Interrupted
from tests.support.batches import check_invariants, data, take
from tests.support.sockets import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.faults.harness import Run
    from tests.faults.shim import Fault

# A failure of these calls is the batch's error, unless the kind of the fault is in PASSING.
SENDS = frozenset(("send", "sendto", "sendmsg", "sendfile", "write", "writev"))
# A failure of these may be its error: some are repeated in another way.
READS = frozenset(("pread", "preadv2", "poll"))
# These faults must not matter, whatever the call.
PASSING = frozenset(("EAGAIN", "EINTR", "short", "signal", "signal+EINTR", "signal+short"))
# After these errors of sendfile(2) the range is read.
SENDFILE_REFUSED = frozenset(("EINVAL", "ENOSYS"))
# A range that is read, and one that goes by sendfile(2).
SMALL = 1000
LARGE = COPY_LIMIT + 5000


class End(Protocol):
    """A socket, or a file object of a pipe or file."""

    def fileno(self) -> int: ...
    def close(self) -> None: ...


class Delivery:
    """A batch and its content.

    Attributes:
        exact: whether the count is known after the exception of a signal handler.
        decode: makes content of the bytes that arrive; it keeps incomplete input.
        raw: the number of bytes that arrived.
        reads: the calls other than SENDS whose failure may be the error of the batch.
        openssl: whether OpenSSL sends: its errors have no errno, and a call that fails in a later
            record does not count the records before.

    """

    def __init__(
        self,
        run: Run,
        *,
        exact: bool = COMPILED,
        decode: Callable[[bytes], bytes] = bytes,
        reads: frozenset[str] = READS,
        openssl: bool = False,
    ) -> None:
        self.run = run
        self.exact = exact
        self.decode = decode
        self.reads = reads
        self.openssl = openssl
        self.raw = 0
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

    def file(self, size: int, *, owned: bool = False, hook: bool = True) -> None:
        """Add a range that starts in the middle of a file."""
        fd = os.open(self.path(size + 7), os.O_RDONLY)
        self.content += data(size + 7, seed=size + 7)[7:]
        if owned:
            self.batch.addfile_close(fd, 7, size)
        else:
            self.batch.addfile(fd, 7, size, on_release=self._hook() if hook else None)
            self.fds.append(fd)

    def path_file(self, size: int) -> None:
        """Add a file by its path."""
        self.batch.addfile(self.path(size), on_release=self._hook())
        self.content += data(size, seed=size)

    def all_kinds(self) -> None:
        """Add entries of all kinds; the ranges are sent together with buffers, and alone."""
        self.buffer(200)
        self.file(SMALL)
        self.buffer(300, bytearray)
        self.file(SMALL + 1, owned=True)
        self.file(LARGE)
        self.buffer(400, hook=False)
        self.file(LARGE + 1, owned=True)

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

    def send(self, step: Callable[[], int], sock: End, peer: End) -> None:
        """Do drive(), then finish()."""
        self.drive(step, sock, peer)
        self.finish(sock, peer)

    def drive(self, step: Callable[[], int], sock: End, peer: End) -> None:
        """Call `step` until the batch is empty or has failed.

        Args:
            step: sends once, and returns as iob_send.
            sock: where it sends to.
            peer: where it arrives, non-blocking.

        """
        code = self.step(step)
        while code not in {IOB_DONE, IOB_ERROR}:
            self.await_writable(sock, peer, wait=code == IOB_AGAIN)
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

    def await_writable(self, sock: End, peer: End, *, wait: bool) -> None:
        """Read what has arrived, and if `wait`, until the socket is writable."""
        self.read(peer.fileno())
        while wait and not select.select([peer], [sock], [], PATIENCE)[1]:
            self.read(peer.fileno())

    def read(self, peer: int) -> None:
        """Read what has arrived."""
        with suppress(BlockingIOError):
            while piece := os.read(peer, 1 << 20):
                self.raw += len(piece)
                self.received += self.decode(piece)

    def finish(self, sock: End, peer: End) -> None:
        """End the stream, read the rest, and check everything."""
        sock.close()
        os.set_blocking(peer.fileno(), True)
        with suppress(ConnectionResetError):
            self.read(peer.fileno())
        self.check()

    def check(self) -> None:
        """Check everything at the end, and release what is left."""
        content, received, batch = bytes(self.content), bytes(self.received), self.batch
        error = batch.error
        self.check_error(error)
        assert received == content[: len(received)], "what arrived is no prefix of the content"
        if self.is_count_unknown(error) or (error is not None and self.openssl):
            assert len(received) >= batch.bytessent
        else:
            assert len(received) == batch.bytessent
            assert error is not None or received == content
            rest = IOBatch()
            rest.extend(batch)
            assert received + take(rest) == content, "the batch does not hold exactly the rest"
        batch.reset()
        self.check_released()

    def check_released(self) -> None:
        """Check that each hook has run once, in order, and close the borrowed files."""
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
            and not self.exact
            and error.errno == errno.EIO
            and ("unknown" in str(error) or "the filter failed" in str(error))
        )

    def check_error(self, error: OSError | None) -> None:
        """Check the error of the batch, or that there is none."""
        failing = self.run.fault if self.run.fault and is_permanent(self.run.fault) else None
        if error is None:
            assert failing is None or failing.call not in SENDS, "the batch has no error"
        elif not self.is_count_unknown(error):
            assert failing is not None, f"the batch failed: {error!r}"
            assert failing.call in SENDS | self.reads, f"the batch failed: {error!r}"
            is_openssl = self.openssl and isinstance(error, SSLError)
            assert is_openssl or self.run.is_fault(error), f"the batch failed: {error!r}"


def is_permanent(fault: Fault) -> bool:
    """Return whether a failed call to send or read must not be repeated."""
    refused = fault.call == "sendfile" and fault.kind in SENDFILE_REFUSED
    return not refused and fault.kind not in PASSING
