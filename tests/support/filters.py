"""Filters in tests: transforms, and sockets that accept part of each send."""

from __future__ import annotations

import select
import subprocess
import sys
import zlib
from selectors import EVENT_WRITE
from typing import TYPE_CHECKING, Any

from iobatch import IOB_AGAIN, IOB_DONE, IOB_ERROR, IOBatch, iob_write
from iobatch.filters import Chunked, Filter
from tests.support.batches import batch_of, check_invariants, data
from tests.support.fakes import Scripted, again
from tests.support.sockets import PATIENCE

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable


# The module that makes zstd.
ZSTD = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
# Random bytes, which can't be compressed, then repetitive text, which can.
BODY = data(150_000) + b"The same again and again. " * 8_000


def run_program(*command: str, stdin: bytes = b"") -> bytes:
    """Run a program whose path tool() returned, and return its output."""
    return subprocess.run(
        command, input=stdin, capture_output=True, timeout=PATIENCE, check=True
    ).stdout


def codec(then: Filter | None) -> Filter:
    """Return the codings of a response: gzip, then chunks."""
    return Filter(zlib.compressobj(wbits=31), Filter(Chunked(), then))


class Xor:
    """A transform that can be seen in its output, as that of TLS can."""

    def compress(self, data: Any) -> bytes:
        return bytes(byte ^ 0x55 for byte in memoryview(data).cast("B"))

    def flush(self) -> bytes:
        return b"\0"  # for close_notify


class Identity:
    """A transform that returns its input itself."""

    def compress(self, data: Any) -> Any:
        return data

    def flush(self) -> bytes:
        return b""


class Counting(Identity):
    """A transform that records the size of each input."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def compress(self, data: Any) -> Any:
        if data:
            self.sizes.append(len(data))
        return data

    def take(self) -> int:
        """Return the number of bytes given since the previous call."""
        total = sum(self.sizes)
        self.sizes.clear()
        return total


class Swallowing(Identity):
    """A transform that returns all of its output from flush()."""

    def __init__(self) -> None:
        self.kept = bytearray()

    def compress(self, data: Any) -> bytearray:
        self.kept += data
        return bytearray()

    def flush(self) -> bytes:
        return bytes(self.kept)


class Growing(Identity):
    """A transform that repeats each byte a hundred times."""

    def compress(self, data: Any) -> bytes:
        return b"".join(bytes([byte]) * 100 for byte in data)


class PartialWriteSocket(Scripted):
    """A socket whose sends in turn accept up to `write_size` bytes and raise EAGAIN."""

    def __init__(self, write_size: int) -> None:
        super().__init__()
        self.write_size = write_size

    def _take(self, name: str, pieces: Any, flags: int) -> int:
        if not self.script:
            self.script.extend((self.write_size, again()))
        return super()._take(name, pieces, flags)


def check_pipeline(pipeline: Filter) -> None:
    """Check the invariants of each filter's batch between two calls."""
    each: Any = pipeline
    while isinstance(each, Filter):
        check_invariants(each._batch)
        assert each.bytesleft == each._batch.bytesleft
        each = each.then


def step_until_done(sock: Scripted, step: Callable[[], int], pipeline: Filter) -> None:
    """Call step until it returns IOB_DONE; IOB_AGAIN is valid only after a call on the socket."""
    for _ in range(1_000_000):
        calls = len(sock.calls)
        code = step()
        check_pipeline(pipeline)
        assert code != IOB_ERROR, pipeline.error
        assert code != IOB_AGAIN or len(sock.calls) > calls
        if code == IOB_DONE:
            return
    raise AssertionError("no end after a million steps")


def write_and_finish(sock: Any, batch: IOBatch, pipeline: Filter, **options: Any) -> None:
    """Write a whole batch, then the end of the stream."""
    step_until_done(sock, lambda: iob_write(sock, batch, pipeline, **options), pipeline)
    step_until_done(sock, lambda: pipeline.finish(sock), pipeline)
    assert not batch
    assert pipeline.error is None


def step_when_writable(step: Callable[[], int], sock: socket.socket, pipeline: Filter) -> None:
    """Call step until it returns IOB_DONE; after IOB_AGAIN wait until the socket is writable."""
    while code := step():
        assert code != IOB_ERROR, pipeline.error
        if code == IOB_AGAIN:
            assert pipeline.wants == EVENT_WRITE
            assert select.select([], [sock], [], PATIENCE)[1]


def write_while_taken(sock: Any, batch: IOBatch, pipeline: Filter) -> int:
    """Write while bytes are taken; return the code of the first call that took none."""
    while (code := iob_write(sock, batch, pipeline)) > 0:
        check_pipeline(pipeline)
    return code


def assert_refused(sock: Any, pipeline: Filter, error: type[OSError], match: str = "") -> None:
    """Check that the pipeline has failed for good, with an error of this type and text."""
    batch = batch_of(b"some", b"more")
    held = pipeline.bytesleft
    for _ in range(2):
        assert iob_write(sock, batch, pipeline) == IOB_ERROR
    assert type(batch.error) is error
    assert match in str(batch.error)
    assert batch.error is pipeline.error
    assert batch.error.__traceback__ is None
    assert batch.bytesleft == 8
    assert pipeline.drain(sock) == pipeline.finish(sock) == IOB_ERROR
    assert pipeline.bytesleft == held
