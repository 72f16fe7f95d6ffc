"""iob_write: the callback path."""

from __future__ import annotations

import errno
import os
import selectors
import socket
import ssl
import sys
from contextlib import suppress
from pickle import PickleBuffer
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from iobatch import (
    IOB_AGAIN,
    IOB_DONE,
    IOB_ERROR,
    WRITE_LIMIT,
    IOBatch,
    TruncatedFileError,
    iob_send,
    iob_sendmsg,
    iob_write,
)
from tests.helpers import (
    PATIENCE,
    STAGE_LIMIT,
    Read,
    check_invariants,
    data,
    is_silent,
    log_preads,
    pump,
    receive,
    stream_pair,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    MakeFile = Callable[[bytes], int]

pytestmark = pytest.mark.usefixtures("no_leaks")

LARGE = 300_000


class Sink:
    """A callback that does what its script says, and then takes everything.

    A number is returned, after so many bytes were taken if it is positive; an exception is raised.
    """

    def __init__(self, *script: Any) -> None:
        self.script = list(script)
        self.offers: list[bytes] = []
        self.taken = bytearray()

    def __call__(self, _sock: object, view: memoryview) -> Any:
        self.offers.append(bytes(view))
        action = self.script.pop(0) if self.script else len(view)
        if isinstance(action, BaseException):
            raise action
        if isinstance(action, int) and action > 0:
            self.taken += view[:action]
        return action


class Slow(Sink):
    """The same, but no number is more than what is offered."""

    def __call__(self, sock: object, view: memoryview) -> Any:
        if self.script:
            self.script[0] = min(self.script[0], len(view))
        return super().__call__(sock, view)


def batch_of(*pieces: bytes | bytearray) -> IOBatch:
    batch = IOBatch()
    for piece in pieces:
        batch.addbuf(piece)
    return batch


def write_all(batch: IOBatch, sink: Any, **options: Any) -> list[int]:
    """Call iob_write until it says something else than n > 0; return all it said."""
    said = []
    for _ in range(100_000):
        said.append(iob_write(None, batch, sink, **options))
        check_invariants(batch)
        if said[-1] <= 0:
            return said
    raise AssertionError("iob_write does not come to an end")


# The callback's arguments


@pytest.mark.parametrize("sock", [None, 5, "name", object(), sys.stdout], ids=repr)
def test_sock_is_handed_on(sock: Any) -> None:
    """The callback gets the very sock that was given, whatever it is."""
    seen = []

    def callback(got: Any, view: memoryview) -> int:
        seen.append(got is sock)
        return len(view)

    assert iob_write(sock, batch_of(b"x"), callback) == 1
    assert seen == [True]


@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_view_is_read_only_and_of_single_bytes(kind: type) -> None:
    """The callback gets a read-only memoryview of bytes, of a writable buffer too."""

    def callback(_sock: None, view: memoryview) -> int:
        assert type(view) is memoryview
        assert (view.readonly, view.format, view.ndim, view.itemsize) == (True, "B", 1, 1)
        return len(view)

    assert iob_write(None, batch_of(kind(b"hello")), callback) == 5


@pytest.mark.parametrize("outcome", [5, -1, KeyError()], ids=repr)
def test_view_is_valid_during_the_call_only(outcome: Any) -> None:
    """A view that the callback keeps is released when it returns, or raises."""
    kept = []

    def callback(_sock: None, view: memoryview) -> int:
        kept.append(view)
        if isinstance(outcome, Exception):
            raise outcome
        return int(outcome)

    buffer = bytearray(b"hello")
    batch = batch_of(buffer)
    if isinstance(outcome, Exception):
        with pytest.raises(KeyError):
            iob_write(None, batch, callback)
    else:
        iob_write(None, batch, callback)
    with pytest.raises(ValueError, match="released"):
        len(kept[0])
    batch.reset()
    buffer.append(0)


def test_callback_that_keeps_a_buffer_of_the_view() -> None:
    """What a callback exports from its view, against the contract, does not break the batch."""
    numpy = pytest.importorskip("numpy", reason="install numpy")
    kept = []

    def callback(_sock: None, view: memoryview) -> int:
        kept.append(numpy.frombuffer(view, "u1"))
        return len(view)

    batch = batch_of(b"hello", bytearray(b"world"))
    while iob_write(None, batch, callback) > 0:
        check_invariants(batch)
    assert b"".join(map(bytes, kept)) == b"helloworld"


# What the callback returns or raises


def test_empty_batch() -> None:
    """An empty batch is done without a call."""
    sink = Sink()
    assert iob_write(None, IOBatch(), sink) == IOB_DONE
    assert sink.offers == []


def test_bytes_then_done() -> None:
    """What is taken is counted; done comes with the next call."""
    batch, sink = batch_of(b"hello"), Sink()
    assert write_all(batch, sink) == [5, 0]
    assert sink.taken == b"hello"
    assert batch.bytessent == 5


def test_short_count_ends_the_call() -> None:
    """A count that is short ends this call; the next offer starts behind it."""
    batch, sink = batch_of(b"0123456789", bytearray(b"abc")), Sink(3)
    assert iob_write(None, batch, sink) == 3
    assert len(sink.offers) == 1
    assert write_all(batch, sink) == [10, 0]
    assert sink.taken == b"0123456789abc"


AGAIN = [
    (-1, selectors.EVENT_WRITE),
    (None, selectors.EVENT_WRITE),
    (BlockingIOError(errno.EAGAIN, "scripted"), selectors.EVENT_WRITE),
    (BlockingIOError(), selectors.EVENT_WRITE),
    (ssl.SSLWantWriteError(ssl.SSL_ERROR_WANT_WRITE, "scripted"), selectors.EVENT_WRITE),
    (ssl.SSLWantReadError(ssl.SSL_ERROR_WANT_READ, "scripted"), selectors.EVENT_READ),
    (TimeoutError("timed out"), selectors.EVENT_WRITE),
]


@pytest.mark.parametrize(("outcome", "wants"), AGAIN, ids=repr)
def test_again(outcome: Any, wants: int) -> None:
    """Each way to say again gives -1, sets wants, and the same bytes are offered next."""
    batch, sink = batch_of(b"hello"), Sink(outcome, outcome)
    for _ in range(2):
        assert iob_write(None, batch, sink) == IOB_AGAIN
        assert (batch.wants, batch.bytesleft, batch.error) == (wants, 5, None)
        check_invariants(batch)
    assert write_all(batch, sink) == [5, 0]
    assert sink.offers == [b"hello"] * 3
    assert batch.wants == selectors.EVENT_WRITE


@pytest.mark.parametrize(("outcome", "wants"), AGAIN, ids=repr)
def test_again_after_bytes(outcome: Any, wants: int) -> None:
    """After bytes were taken in this call their count is returned; wants is set all the same."""
    batch = batch_of(bytearray(b"hello"), bytearray(b"world"))
    sink = Sink(5, outcome, outcome)
    assert iob_write(None, batch, sink) == 5
    assert batch.wants == wants
    assert iob_write(None, batch, sink) == IOB_AGAIN
    assert sink.offers == [b"hello", b"world", b"world"]
    assert write_all(batch, sink) == [5, 0]


@pytest.mark.parametrize(
    ("outcome", "kind", "number"),
    [
        (0, BrokenPipeError, errno.EPIPE),
        (-3, OSError, None),
        (OSError(errno.EIO, "scripted"), OSError, errno.EIO),
        (ConnectionResetError(errno.ECONNRESET, "s"), ConnectionResetError, errno.ECONNRESET),
        (TimeoutError(errno.ETIMEDOUT, "scripted"), TimeoutError, errno.ETIMEDOUT),
        (ssl.SSLError(ssl.SSL_ERROR_SSL, "scripted"), ssl.SSLError, ssl.SSL_ERROR_SSL),
        (ssl.SSLZeroReturnError(ssl.SSL_ERROR_ZERO_RETURN, "s"), ssl.SSLZeroReturnError, None),
        (ssl.SSLEOFError(ssl.SSL_ERROR_EOF, "scripted"), ssl.SSLEOFError, None),
        (OSError("no errno"), OSError, None),
    ],
    ids=repr,
)
def test_error(outcome: Any, kind: type[OSError], number: int | None) -> None:
    """0, -3 and any other OSError are permanent, and the callback is not called again."""
    batch, sink = batch_of(b"hello"), Sink(outcome)
    for _ in range(2):
        assert iob_write(None, batch, sink) == IOB_ERROR
    error = batch.error
    assert isinstance(error, kind)
    assert error.__traceback__ is error.__context__ is error.__cause__ is None
    if number is not None:
        assert error.errno == number
    assert len(sink.offers) == 1
    assert batch.bytesleft == 5
    check_invariants(batch)


def test_error_after_bytes() -> None:
    """After bytes were taken in this call their count comes first, the error with the next."""
    batch = batch_of(bytearray(b"hello"), bytearray(b"world"))
    sink = Sink(5, OSError(errno.EPIPE, "scripted"))
    assert iob_write(None, batch, sink) == 5
    assert iob_write(None, batch, sink) == IOB_ERROR
    assert isinstance(batch.error, BrokenPipeError)
    assert len(sink.offers) == 2
    assert (batch.bytessent, batch.bytesleft) == (5, 5)


@pytest.mark.parametrize(
    ("outcome", "error"),
    [
        (6, ValueError),
        (10**9, ValueError),
        (-2, ValueError),
        (-4, ValueError),
        ("5", TypeError),
        (5.0, TypeError),
        (b"", TypeError),
        (KeyError("scripted"), KeyError),
        (ValueError("scripted"), ValueError),
    ],
    ids=repr,
)
def test_anything_else_propagates(outcome: Any, error: type[BaseException]) -> None:
    """A count that can't be, and any other exception, propagate; the batch is as before it."""
    batch = batch_of(bytearray(b"one"), bytearray(b"hello"))
    sink = Sink(3, outcome)
    with pytest.raises(error):
        iob_write(None, batch, sink)
    assert (batch.bytesleft, batch.bytessent, batch.error) == (5, 3, None)
    check_invariants(batch)
    batch.prepend(b"not pinned: ")
    sink.taken.clear()
    write_all(batch, sink)
    assert sink.taken == b"not pinned: hello"


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.EINPROGRESS, errno.EALREADY, None])
def test_a_blocking_io_error_is_again_whatever_its_number(number: int | None) -> None:
    """A connection that is still being made says EINPROGRESS (MSG_FASTOPEN)."""
    error = BlockingIOError() if number is None else BlockingIOError(number, "scripted")
    batch, sink = batch_of(b"abc"), Sink(error)
    assert iob_write(None, batch, sink) == IOB_AGAIN
    assert iob_write(None, batch, sink) == 3


def test_a_callback_that_keeps_a_buffer_of_its_view_harms_nothing() -> None:
    """The view can't be released then, and the write goes on."""
    batch = batch_of(b"one", bytearray(b"two"))
    kept = []

    def callback(_sock: object, view: memoryview) -> int:
        kept.append(PickleBuffer(view))
        return len(view)

    assert iob_write(None, batch, callback) == 6
    assert [bytes(each) for each in kept] == [b"one", b"two"]
    check_invariants(batch)


def test_a_callback_sees_no_error() -> None:
    """While a batch is being written it has not failed, whatever is noted for that case."""
    batch = batch_of(b"one")
    seen = []

    def callback(_sock: object, view: memoryview) -> int:
        seen.append(batch.error)
        return len(view)

    assert iob_write(None, batch, callback) == 3
    assert seen == [None]


def test_ctrl_c_in_a_callback_fails_the_batch_for_good() -> None:
    """What the callback had sent by then is unknown, so nothing of the batch is offered again."""
    batch, sink = batch_of(b"0123456789"), Sink(3, KeyboardInterrupt())
    assert iob_write(None, batch, sink) == 3
    with pytest.raises(KeyboardInterrupt):
        iob_write(None, batch, sink)
    assert iob_write(None, batch, sink) == IOB_ERROR
    assert batch.error is not None
    assert batch.error.errno == errno.EIO
    assert len(sink.offers) == 2
    batch.reset()
    check_invariants(batch)


def test_a_failed_callback_keeps_an_earlier_pin() -> None:
    """An exception after an again leaves the pin: the next offer is still the same."""
    batch, sink = batch_of(b"0123456789"), Sink(-1, KeyError(), 11)
    assert iob_write(None, batch, sink, limit=4) == IOB_AGAIN
    for error in (KeyError, ValueError):
        with pytest.raises(error):
            iob_write(None, batch, sink, limit=7)
    assert write_all(batch, sink) == [10, 0]
    assert sink.offers[:4] == [b"0123"] * 4


def test_true_is_a_count() -> None:
    """What has __index__ counts as that number."""
    batch, sink = batch_of(b"ab"), Sink(True)
    assert iob_write(None, batch, sink) == 1
    assert batch.bytesleft == 1


def test_buffered_file_that_is_full() -> None:
    """A buffered file's BlockingIOError says how much it took: that is not written twice."""
    source, target = os.pipe()
    os.set_blocking(source, False)
    os.set_blocking(target, False)
    content = data(1_000_000)
    batch = batch_of(content)
    received = bytearray()
    with os.fdopen(target, "wb") as file:
        for _ in range(10_000):
            if len(received) == len(content):
                break
            assert iob_write(file, batch, lambda file, view: file.write(view)) != IOB_ERROR
            with suppress(BlockingIOError):  # it keeps some in its own buffer
                file.flush()
            with suppress(BlockingIOError):
                received += os.read(source, 5000)  # so the pipe is full most of the time
    os.close(source)
    assert received == content
    assert not batch


@pytest.mark.parametrize("count", [-5, 6, 10**9])
def test_blocking_error_with_an_absurd_count(count: int) -> None:
    """A BlockingIOError never makes the accounts wrong, whatever it claims was written."""
    batch = batch_of(b"hello")
    sink = Sink(BlockingIOError(errno.EAGAIN, "scripted", count))
    with suppress(ValueError):
        iob_write(None, batch, sink)
    check_invariants(batch)
    assert batch.bytesleft >= 0


# Limit, pinning, joining


@pytest.mark.parametrize(
    ("limit", "error"), [(0, ValueError), (-1, ValueError), ("1", TypeError), (1.5, TypeError)]
)
def test_bad_limit(limit: Any, error: type[Exception]) -> None:
    """A limit below 1 is a ValueError, and nothing is offered."""
    batch, sink = batch_of(b"hello"), Sink()
    with pytest.raises(error):
        iob_write(None, batch, sink, limit=limit)
    assert sink.offers == []
    check_invariants(batch)


def test_default_limit(make_file: MakeFile) -> None:
    """One call offers at most WRITE_LIMIT bytes of whatever; None is no cap."""
    content = data(LARGE)
    fd = make_file(content)
    for add in (
        lambda b: b.addbuf(content),
        lambda b: b.addfile(fd),
        lambda b: [b.addbuf(content[i : i + 1000]) for i in range(0, LARGE, 1000)],
        lambda b: [b.addfile(fd, i, 1000) for i in range(0, LARGE, 1000)],
    ):
        batch, sink = IOBatch(), Sink()
        add(batch)
        said = write_all(batch, sink)
        assert max(said) <= WRITE_LIMIT
        assert said[0] == WRITE_LIMIT
        assert sum(said) == LARGE
        add(batch)
        assert write_all(batch, sink, limit=None) == [LARGE, 0]
        assert sink.taken == content + content


@pytest.mark.parametrize("limit", [1, 2, 3, 1000, 40_000])
def test_limit(make_file: MakeFile, limit: int) -> None:
    """No call takes more than its limit, and all arrives in order."""
    content = data(3_000 if limit < 10 else LARGE)
    batch, sink = IOBatch(), Sink()
    batch.addbuf(b"header")
    batch.addfile(make_file(content))
    batch.addbuf(bytearray(b"trailer"))
    while (nbytes := iob_write(None, batch, sink, limit=limit)) > 0:
        assert nbytes <= limit
        check_invariants(batch)
    assert nbytes == IOB_DONE
    assert sink.taken == b"header" + content + b"trailer"


@pytest.mark.parametrize("first", [1, 4, 100, None])
@pytest.mark.parametrize("second", [1, 3, 7, 200_000, None])
@pytest.mark.parametrize("kind", ["buffer", "file", "small pieces"])
def test_retry_pinning(
    make_file: MakeFile, first: int | None, second: int | None, kind: str
) -> None:
    """After again the next offer is the same bytes in the same length, whatever the limit."""
    content = data(1000)
    batch, sink = IOBatch(), Sink(-1, None, BlockingIOError(), -1)
    if kind == "buffer":
        batch.addbuf(content)
    elif kind == "file":
        batch.addfile(make_file(content))
    else:
        for i in range(0, 1000, 10):
            batch.addbuf(content[i : i + 10])
    assert iob_write(None, batch, sink, limit=first) == IOB_AGAIN
    for limit in (second, first, second):
        batch.addbuf(b"more")  # what comes behind makes the offer no longer
        assert iob_write(None, batch, sink, limit=limit) == IOB_AGAIN
    assert iob_write(None, batch, sink, limit=second) > 0
    assert len({*sink.offers[:5]}) == 1
    write_all(batch, sink)
    assert sink.taken == content + b"more" * 3


def test_pin_of_a_short_rest() -> None:
    """After a short count nothing is pinned: the next offer may be of another length."""
    batch, sink = batch_of(b"0123456789"), Sink(-1, 2, -1, 3)
    assert iob_write(None, batch, sink, limit=5) == IOB_AGAIN
    assert iob_write(None, batch, sink, limit=9) == 2
    assert iob_write(None, batch, sink, limit=4) == IOB_AGAIN
    assert iob_write(None, batch, sink, limit=1) == 3
    assert sink.offers == [b"01234", b"01234", b"2345", b"2345"]
    write_all(batch, sink)
    assert sink.taken == b"0123456789"


def test_pin_survives_extend() -> None:
    """What is pinned at the head of a batch stays so where all of it is moved to an empty one."""
    batch, other, sink = batch_of(b"0123456789"), IOBatch(), Sink(-1)
    assert iob_write(None, batch, sink, limit=4) == IOB_AGAIN
    other.extend(batch)
    check_invariants(other)
    with pytest.raises(RuntimeError):
        other.prepend(b"x")
    batch.prepend(b"y")
    write_all(other, sink)
    assert sink.offers[:2] == [b"0123", b"0123"]


def test_pin_does_not_move_behind_others() -> None:
    """Moved behind other entries, what was pinned is offered when its turn comes."""
    batch, other, sink = batch_of(b"0123456789"), batch_of(b"first "), Sink(-1)
    assert iob_write(None, batch, sink, limit=4) == IOB_AGAIN
    other.extend(batch)
    write_all(other, sink)
    assert sink.taken == b"first 0123456789"


def test_small_neighbours_are_one_offer(make_file: MakeFile) -> None:
    """A header and a small file are one offer, and so one TLS record."""
    content = data(1000)
    batch, sink = IOBatch(), Sink()
    batch.addbuf(b"header")
    batch.addfile(make_file(content))
    assert write_all(batch, sink) == [1006, 0]
    assert sink.offers == [b"header" + content]


def test_many_small_buffers_are_joined() -> None:
    """A thousand small buffers take a few offers only."""
    batch, sink = IOBatch(), Sink()
    for i in range(1000):
        batch.addbuf(data(20, seed=i))
    write_all(batch, sink)
    assert len(sink.offers) <= 10
    assert sink.taken == b"".join(data(20, seed=i) for i in range(1000))


def test_what_has_a_hook_is_released_by_its_own_last_byte() -> None:
    """Hooks run at their entry's last byte, however entries were offered."""
    seen: list[tuple[str, int]] = []
    batch, sink = IOBatch(), Sink(1, 1, 1, 1, 1, 1, 1, 1)
    for name in ("aa", "bb", "cc"):
        batch.addbuf(
            name.encode(), on_release=lambda name=name: seen.append((name, batch.bytessent))
        )
        batch.addbuf(b"-")
    write_all(batch, sink)
    assert seen == [("aa", 2), ("bb", 5), ("cc", 8)]


@pytest.mark.parametrize("kind", ["plain", "hooks", "mixed"])
def test_work_is_linear(kind: str) -> None:
    """Five times as many buffers take about five times as many steps of the interpreter."""
    counts = []
    for number in (4_000, 20_000):
        batch, sink = IOBatch(), Sink()
        for i in range(number):
            piece = bytearray(b"x") if kind == "mixed" and i % 2 else b"x"
            batch.addbuf(piece, on_release=int if kind == "hooks" else None)
        calls = 0

        def count(_frame: object, _event: str, _arg: object) -> None:
            nonlocal calls
            calls += 1

        sys.setprofile(count)
        try:
            while batch:
                iob_write(None, batch, sink)
        finally:
            sys.setprofile(None)
        counts.append(calls)
    assert counts[1] < 7 * counts[0]
    assert counts[1] < 100 * 20_000, "some steps for each buffer, not one for each pair of them"


# Files


@pytest.mark.parametrize("script", ["all", "short", "again"])
def test_a_file_is_read_once_and_in_pieces(
    make_file: MakeFile, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    """A file is read piece by piece; a piece that is not taken yet is kept, not read again."""
    content = data(LARGE)
    fd = make_file(content)
    reads: list[Read] = log_preads(monkeypatch)
    actions = {"all": [], "short": [1, 1000] * 200, "again": [-1, 5000, -1] * 100}[script]
    batch, sink = IOBatch(), Slow(*actions)
    batch.addfile(fd)
    while batch:
        iob_write(None, batch, sink, limit=None)
        check_invariants(batch)
        assert sum(read.size for read in reads) - batch.bytessent <= STAGE_LIMIT
    assert sink.taken == content
    assert sum(read.size for read in reads) == LARGE
    assert max(read.size for read in reads) <= STAGE_LIMIT


def test_a_slow_reader_holds_little_of_many_small_files(
    make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a long batch of small files little is in memory at a time."""
    content = data(20_000)
    fd = make_file(content)
    reads: list[Read] = log_preads(monkeypatch)
    batch, sink = IOBatch(), Slow(*[3000, -1] * 150)
    for _ in range(50):
        batch.addfile(fd)
    while batch:
        iob_write(None, batch, sink)
        assert sum(read.size for read in reads) - batch.bytessent <= STAGE_LIMIT
    assert sink.taken == content * 50
    assert sum(read.size for read in reads) == 50 * 20_000


def test_truncated_file(make_file: MakeFile) -> None:
    """A file that ends too early: its bytes first, then TruncatedFileError, and no spin."""
    content = data(LARGE)
    fd = make_file(content)
    batch, sink = IOBatch(), Sink()
    batch.addbuf(b"header")
    batch.addfile(fd)
    os.ftruncate(fd, LARGE - 1000)
    assert write_all(batch, sink)[-1] == IOB_ERROR
    assert sink.taken == b"header" + content[:-1000]
    error = batch.error
    assert isinstance(error, TruncatedFileError)
    assert (error.fd, error.offset, error.missing) == (fd, LARGE - 1000, 1000)


# Inside the callback


def test_callback_may_not_send_or_reset_its_batch() -> None:
    """Sending, resetting, moving or prepending to the batch in its callback is a RuntimeError."""
    batch, other = batch_of(b"hello"), IOBatch()
    errors = []

    def callback(_sock: None, view: memoryview) -> int:
        for forbidden in (
            lambda: iob_write(None, batch, Sink()),
            lambda: iob_send(1, batch),
            lambda: iob_sendmsg(unused, batch),
            batch.reset,
            lambda: other.extend(batch),
            lambda: batch.prepend(b"x"),
        ):
            with pytest.raises(RuntimeError) as caught:
                forbidden()
            errors.append(caught.type)
        return len(view)

    with socket.socket() as unused:
        assert iob_write(None, batch, callback) == 5
    assert len(errors) == 6
    check_invariants(batch)


def test_callback_may_add() -> None:
    """What a callback adds to its batch goes out behind the rest, in the same call even."""
    batch = batch_of(b"hello ")
    taken = bytearray()

    def callback(_sock: None, view: memoryview) -> int:
        if not taken:
            batch.addbuf(b"world")
        taken.extend(view)
        return len(view)

    while iob_write(None, batch, callback) > 0:
        check_invariants(batch)
    assert taken == b"hello world"


def test_callback_may_send_another_batch() -> None:
    """A callback may drive another batch, as a chain of filters does."""
    batch, other, sink = batch_of(b"hello"), IOBatch(), Sink()

    def callback(sock: None, view: memoryview) -> int:
        other.addbuf(bytes(view).upper())
        iob_write(sock, other, sink)
        return len(view)

    assert iob_write(None, batch, callback) == 5
    assert sink.taken == b"HELLO"


# Callbacks as they stand


def test_socket_send_and_os_write(pair: Any, make_file: MakeFile) -> None:
    """socket.socket.send and os.write are callbacks as they stand."""
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


def tls_contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return server, client


def handshake(*sides: ssl.SSLSocket) -> None:
    """Let two non-blocking sides shake hands, in one thread."""
    waiting = set(sides)
    for _ in range(1000):
        for side in list(waiting):
            try:
                side.do_handshake()
                waiting.discard(side)
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                pass
        if not waiting:
            return
    raise AssertionError("no handshake")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_tls_with_a_slow_reader(make_file: MakeFile, version: ssl.TLSVersion) -> None:
    """Over real TLS with small buffers a 16 MiB file and 1,000 buffers arrive byte-identical."""
    server, client = tls_contexts()
    server.minimum_version = server.maximum_version = version
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
    said = set()
    with stream_pair("tcp4", buffers=30_000) as (one, other):
        one.setblocking(False)
        other.setblocking(False)
        with (
            server.wrap_socket(one, server_side=True, do_handshake_on_connect=False) as conn,
            client.wrap_socket(
                other, server_hostname="localhost", do_handshake_on_connect=False
            ) as peer,
            selectors.DefaultSelector() as selector,
        ):
            handshake(conn, peer)
            selector.register(conn, selectors.EVENT_WRITE)
            selector.register(peer, selectors.EVENT_READ)
            drop = bytearray(1 << 16)
            while len(received) < len(wanted):
                events = selector.select(PATIENCE)
                assert events, "nothing moves any more"
                for key, _ in events:
                    if key.fileobj is conn:
                        nbytes = iob_write(conn, batch, ssl.SSLSocket.send)
                        said.add(min(nbytes, 1))
                        assert nbytes != IOB_ERROR, batch.error
                        if nbytes == IOB_DONE:
                            selector.unregister(conn)
                        else:
                            selector.modify(conn, batch.wants)
                        continue
                    try:
                        count = peer.recv_into(drop)
                    except ssl.SSLWantReadError:
                        continue
                    received += drop[:count]
                    while peer.pending():
                        count = peer.recv_into(drop)
                        received += drop[:count]
            # The reader may be done before the writer has had a turn to see that it is.
            assert iob_write(conn, batch, ssl.SSLSocket.send) == IOB_DONE
    assert received == wanted
    assert said - {IOB_DONE} == {IOB_AGAIN, 1}


def test_tls_peer_is_gone() -> None:
    """A TLS connection whose peer has closed gives a permanent error, not an exception."""
    server, client = tls_contexts()
    with stream_pair() as (one, other):
        one.setblocking(False)
        other.setblocking(False)
        with (
            server.wrap_socket(one, server_side=True, do_handshake_on_connect=False) as conn,
            client.wrap_socket(
                other, server_hostname="localhost", do_handshake_on_connect=False
            ) as peer,
        ):
            handshake(conn, peer)
            peer.close()
            batch = batch_of(data(1000))
            said = [iob_write(conn, batch, ssl.SSLSocket.send) for _ in range(3)]
    assert said[-1] == IOB_ERROR
    assert isinstance(batch.error, OSError)


def test_plain_socket_after_a_pin() -> None:
    """After an again through a callback a plain socket may get the rest from iob_send."""
    batch = batch_of(b"0123456789")
    with stream_pair() as (one, other):
        assert iob_write(one, batch, lambda _sock, _view: -1, limit=3) == IOB_AGAIN
        assert is_silent(other)
        assert iob_send(one, batch) == 10
        assert receive(other, 10) == b"0123456789"
    check_invariants(batch)
