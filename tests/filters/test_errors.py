"""Errors of transforms, callbacks and the socket."""

from __future__ import annotations

import errno
import select
import ssl
import zlib
from collections import deque
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from iobatch import IOB_AGAIN, IOB_DONE, IOB_ERROR, WRITE_LIMIT, iob_write
from iobatch.filters import Chunked, Filter
from tests.support.batches import batch_of, data
from tests.support.filters import Identity, assert_refused
from tests.support.sockets import stream_pair

if TYPE_CHECKING:
    import trustme

    from tests.support.fakes import Scripted
    from tests.support.tls import TLSClient


class Raising(Identity):
    """A transform that raises its script's exceptions in compress (None: none), `end` in flush."""

    def __init__(self, *script: BaseException | None, end: BaseException | None = None) -> None:
        self.script = deque(script)
        self.end = end
        self.calls = 0

    def compress(self, data: Any) -> Any:
        self.calls += bool(data)
        if data and self.script and (exc := self.script.popleft()):
            raise exc
        return data

    def flush(self) -> bytes:
        if self.end is not None:
            raise self.end
        return b""


def test_only_an_sslerror_asks_the_transform_for_an_alert(sock: Scripted) -> None:
    offers: list[bytes] = []

    def compress(data: Any) -> bytes:
        offers.append(bytes(data))
        raise OSError(errno.ENOSPC, "scripted")

    pipeline = Filter(SimpleNamespace(compress=compress, flush=bytes))
    assert iob_write(sock, batch_of(b"abc"), pipeline) == IOB_ERROR
    assert offers == [b"abc"]


def test_error_names_the_exception_and_not_only_its_note(sock: Scripted) -> None:
    exc = ValueError("bad input")
    exc.add_note("a note")
    pipeline = Filter(Raising(exc))
    with pytest.raises(ValueError):
        iob_write(sock, batch_of(b"abc"), pipeline)
    assert "ValueError: bad input" in str(pipeline.error)


def test_exception_of_a_transform_propagates_once_and_leaves_an_oserror(sock: Scripted) -> None:
    """Nothing of the offer counts as taken, and the transform is not called again."""
    transform = Raising(None, zlib.error("corrupt"))
    pipeline = Filter(Identity(), Filter(transform))
    batch = batch_of(b"one", bytes(WRITE_LIMIT), b"two")
    assert iob_write(sock, batch, pipeline, limit=3) == 3
    assert sock.taken == b"one"
    batch = batch_of(b"two")
    with pytest.raises(zlib.error, match="corrupt"):
        iob_write(sock, batch, pipeline)
    assert batch.bytesleft == 3
    assert_refused(sock, pipeline, OSError, "corrupt")
    assert transform.calls == 2
    assert sock.taken == b"one"


@pytest.mark.parametrize("next_fails", [False, True], ids=["first filter", "next filter"])
def test_oserror_of_a_transform_is_the_error_of_batch_and_filter(
    *, next_fails: bool, sock: Scripted
) -> None:
    error = OSError(errno.ENOSPC, "no space")
    transform = Raising(error)
    pipeline = Filter(Identity(), Filter(transform)) if next_fails else Filter(transform)
    batch = batch_of(bytes(WRITE_LIMIT), b"more")
    codes = [iob_write(sock, batch, pipeline) for _ in range(3)]
    # The first filter has taken the offer before the next one fails.
    assert codes == [WRITE_LIMIT if next_fails else IOB_ERROR, IOB_ERROR, IOB_ERROR]
    assert batch.error is pipeline.error is error
    assert_refused(sock, pipeline, OSError, "no space")
    assert transform.calls == 1


@pytest.mark.parametrize(
    "error",
    [BlockingIOError(errno.EAGAIN, "scripted", 2), TimeoutError(), ssl.SSLWantWriteError(3, "x")],
    ids=lambda error: type(error).__name__,
)
def test_again_raised_by_a_transform_is_a_permanent_error(sock: Scripted, error: OSError) -> None:
    """A transform has nothing to wait for except SSLWantReadError."""
    pipeline = Filter(Raising(error))
    batch = batch_of(b"data")
    for _ in range(2):
        assert iob_write(sock, batch, pipeline) == IOB_ERROR
    assert batch.error is pipeline.error
    assert (batch.error.errno, batch.bytesleft) == (errno.EIO, 4)


def test_exception_whose_str_and_repr_raise_is_a_permanent_error(sock: Scripted) -> None:
    class UnprintableError(Exception):
        def __str__(self) -> str:
            raise ValueError

        __repr__ = __str__

    pipeline = Filter(Raising(UnprintableError()))
    batch = batch_of(b"data")
    with pytest.raises(UnprintableError):
        iob_write(sock, batch, pipeline)
    assert iob_write(sock, batch, pipeline) == IOB_ERROR
    assert "UnprintableError" in str(batch.error)


def test_oserror_of_a_transform_during_drain_is_permanent(sock: Scripted) -> None:
    def compress(_: Any) -> bytes:
        raise OSError(errno.EIO, "scripted")

    pipeline = Filter(SimpleNamespace(compress=compress, flush=bytes))
    assert pipeline.drain(sock) == IOB_ERROR
    assert_refused(sock, pipeline, OSError, "scripted")


@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "scripted"), ValueError("scripted")], ids=["OSError", "ValueError"]
)
def test_finish_returns_error_for_an_oserror_of_flush_and_raises_others(
    error: Exception, sock: Scripted
) -> None:
    pipeline = Filter(Identity(), Filter(Raising(end=error)))
    assert iob_write(sock, batch_of(b"abc"), pipeline) == 3
    if isinstance(error, OSError):
        assert pipeline.finish(sock) == IOB_ERROR
    else:
        with pytest.raises(ValueError, match="scripted"):
            pipeline.finish(sock)
    assert_refused(sock, pipeline, OSError, "scripted")


def compress_raises_and_alert_is(alert: Any) -> SimpleNamespace:
    """Return a transform that raises an SSLError for data, and returns or raises its alert."""

    def compress(data: Any) -> Any:
        if data:
            raise ssl.SSLError(1, "the first")
        if isinstance(alert, BaseException):
            raise alert
        return alert

    def flush() -> bytes:
        raise ssl.SSLError(1, "the first")

    return SimpleNamespace(compress=compress, flush=flush)


@pytest.mark.parametrize(
    "alert",
    [
        ssl.SSLError(1, "the second"),
        ssl.SSLWantReadError(),
        OSError(errno.EIO, "the second"),
        ValueError("the second"),
        MemoryError(),
        None,
        "text",
    ],
    ids=repr,
)
def test_error_in_making_the_alert_leaves_the_first_error(alert: Any, sock: Scripted) -> None:
    for step in (
        lambda pipeline: iob_write(sock, batch_of(b"data"), pipeline),
        lambda pipeline: pipeline.finish(sock),
    ):
        pipeline = Filter(compress_raises_and_alert_is(alert))
        assert step(pipeline) == IOB_ERROR
        assert_refused(sock, pipeline, ssl.SSLError, "the first")
    assert not sock.taken


def test_drain_that_fails_twice_returns_error(sock: Scripted) -> None:
    """Its own call is the one that makes an alert, too."""
    errors = [ssl.SSLError(1, "the second"), ssl.SSLError(1, "the first")]

    def compress(_: Any) -> bytes:
        raise errors.pop()

    pipeline = Filter(SimpleNamespace(compress=compress, flush=bytes))
    assert pipeline.drain(sock) == IOB_ERROR
    assert not errors
    assert_refused(sock, pipeline, ssl.SSLError, "the first")


@pytest.mark.parametrize(
    "error", [ConnectionResetError(errno.ECONNRESET, "reset"), KeyError("scripted"), MemoryError()]
)
def test_error_in_sending_the_alert_leaves_the_first_error(error: Exception) -> None:
    sent = []

    def callback(_: Any, view: memoryview) -> int:
        sent.append(bytes(view))
        raise error

    pipeline = Filter(compress_raises_and_alert_is(b"alert"), callback)
    assert iob_write(None, batch_of(b"data"), pipeline) == IOB_ERROR
    assert sent == [b"alert"]
    assert_refused(None, pipeline, ssl.SSLError, "the first")
    assert sent == [b"alert"]


def test_keyboard_interrupt_in_sending_the_alert_leaves_the_call(sock: Scripted) -> None:
    def callback(_: Any, view: memoryview) -> int:
        raise KeyboardInterrupt

    pipeline = Filter(compress_raises_and_alert_is(b"alert"), callback)
    with pytest.raises(KeyboardInterrupt):
        pipeline.finish(sock)
    assert pipeline.error is not None
    assert pipeline.drain(sock) == IOB_ERROR


def test_error_that_can_not_be_named_is_permanent(
    sock: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise iob_write would offer the same bytes to the transform again."""

    def no_memory(_: BaseException) -> list[str]:
        raise MemoryError

    monkeypatch.setattr("iobatch.filters.format_exception_only", no_memory)
    transform = Raising(ValueError("scripted"))
    pipeline = Filter(transform)
    with pytest.raises(MemoryError):
        iob_write(sock, batch_of(b"data"), pipeline)
    assert_refused(sock, pipeline, OSError, "unknown")
    assert transform.calls == 1


def test_socket_error_is_the_error_of_every_filter_and_the_batch(
    tls_client: TLSClient, sock: Scripted
) -> None:
    pipeline = Filter(Identity(), Filter(Chunked(), tls_client.filter))
    sock.script.append(ConnectionResetError(errno.ECONNRESET, "reset"))
    batch = batch_of(data(WRITE_LIMIT), b"more")
    assert iob_write(sock, batch, pipeline) == WRITE_LIMIT
    assert iob_write(sock, batch, pipeline) == IOB_ERROR
    assert isinstance(batch.error, ConnectionResetError)
    assert batch.error is pipeline.error is tls_client.filter.error
    assert_refused(sock, pipeline, ConnectionResetError)
    assert len(sock.calls) == 1


def test_exception_of_the_last_callback_prevents_a_second_offer(sock: Scripted) -> None:
    """The transforms have run on the bytes, though iob_write counts none of them as taken."""
    calls = []

    def callback(_: Any, view: memoryview) -> int:
        calls.append(bytes(view))
        raise KeyError("scripted")

    pipeline = Filter(Identity(), Filter(Identity(), callback))
    batch = batch_of(b"abc")
    with pytest.raises(KeyError):
        iob_write(sock, batch, pipeline)
    assert_refused(sock, pipeline, OSError, "scripted")
    assert calls == [b"abc"]


def test_exception_of_the_last_callback_in_drain_changes_nothing() -> None:
    """drain() takes no input, so the same bytes are offered again."""
    script: deque[Any] = deque([IOB_AGAIN, KeyError("scripted"), None, 2, 1])
    taken = bytearray()

    def callback(_: Any, view: memoryview) -> Any:
        action = script.popleft()
        if isinstance(action, Exception):
            raise action
        if action and action > 0:
            taken.extend(view[:action])
        return action

    pipeline = Filter(Identity(), callback)
    assert iob_write(None, batch_of(b"abc"), pipeline) == 3
    with pytest.raises(KeyError):
        pipeline.drain(None)
    assert [pipeline.drain(None) for _ in range(3)] == [IOB_AGAIN, 3, IOB_DONE]
    assert taken == b"abc"


def test_tls_socket_without_a_callback_is_refused_before_it_sends_plain_text(
    authority: trustme.CA,
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    with (
        stream_pair() as (one, other),
        context.wrap_socket(
            one, server_hostname="localhost", do_handshake_on_connect=False
        ) as conn,
    ):
        pipeline = Filter(Identity())
        with pytest.raises(TypeError):
            iob_write(conn, batch_of(b"secret"), pipeline)
        assert not select.select([other], [], [], 0)[0]
        assert_refused(conn, pipeline, OSError, "TypeError")
