"""A callback of iob_write that answers its offers as it was drawn to."""

from __future__ import annotations

import errno
import ssl
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

if TYPE_CHECKING:
    from tests.models.batch import BatchModel

# What a callback of iob_write does with an offer.
ANSWERS = st.one_of(
    st.just("all"),
    st.sampled_from(["half", "one", "taken", "add bytes", "reset", "ValueError", "too many"]),
    st.sampled_from(["-1", "None", "BlockingIOError", "SSLWantReadError", "TimeoutError"]),
    st.sampled_from(["-1", "SSLWantReadError", "0", "-3", "OSError", "signal"]),
)


class Offers:
    """A callback of iob_write with answers to its next calls; then it takes what the wire does."""

    def __init__(self, model: BatchModel, answers: list[str]) -> None:
        self.model = model
        self.answers = answers[::-1]
        self.seen: list[bytes] = []
        self.last = ""
        self.reasons: list[Any] = []

    def take(self, sock: Any, view: memoryview) -> int | None:
        model = self.model
        assert sock is model.wire.sock
        assert view.readonly
        assert self.last not in {"short", "again"} or model.wire.scripted
        offer = bytes(view)
        self.seen.append(offer)
        model.sync()
        assert model.plain.starts_with(offer), "these bytes are not the next ones"
        self.last = self.answers.pop() if self.answers else "all"
        try:
            return self._answer(sock, view)
        except BlockingIOError as exc:
            self.last = "short" if getattr(exc, "characters_written", 0) else "again"
            raise

    def _answer(self, sock: Any, view: memoryview) -> int | None:
        last, half = self.last, max(1, len(view) // 2)
        if last in {"half", "one", "taken"}:
            sent: int = sock.send(view[: 1 if last == "one" else half])
            if last == "taken":
                raise BlockingIOError(errno.EAGAIN, "some were taken", sent)
            return sent
        if last in {"-1", "None", "SSLWantReadError", "TimeoutError", "BlockingIOError"}:
            self.last = "again"
            if last == "SSLWantReadError":
                self.model.wanted_read = True
            if last in {"-1", "None"}:
                return -1 if last == "-1" else None
            raise {
                "SSLWantReadError": ssl.SSLWantReadError(ssl.SSL_ERROR_WANT_READ, "callback"),
                "TimeoutError": TimeoutError(),
                "BlockingIOError": BlockingIOError(),
            }[last]
        if last == "ValueError":
            raise ValueError("callback")
        if last == "too many":
            return len(view) + 1
        if last in {"0", "-3", "OSError"}:
            number = {"0": errno.EPIPE, "-3": errno.EIO}.get(last, errno.ECONNRESET)
            self.reasons.append(OSError(number, ""))
            if last == "OSError":
                raise OSError(number, "callback")
            return int(last)
        if last == "signal":
            sock.send(view[:half])
            self.model.signal(raises=True)
        elif last in {"add bytes", "reset"}:
            self.model.act(last)
        return sock.send(view)
