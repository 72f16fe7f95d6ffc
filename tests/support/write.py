"""Writing in tests: a scripted callback for iob_write, and repeated calls."""

from __future__ import annotations

from typing import Any

from iobatch import IOBatch, iob_write
from tests.support.batches import check_invariants

LARGE = 300_000  # several times WRITE_LIMIT, and more than one system call stages


class Sink:
    """A callback that follows its script, and then takes all that it is offered.

    A number n in the script is returned; if n > 0, the first n bytes are taken. An exception is
    raised.
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


def write_repeatedly(batch: IOBatch, sink: Any, **options: Any) -> list[int]:
    """Call iob_write until it returns 0 or a negative code; return all that it returned."""
    results = []
    for _ in range(100_000):
        results.append(iob_write(None, batch, sink, **options))
        check_invariants(batch)
        if results[-1] <= 0:
            return results
    raise AssertionError("iob_write never returned 0 or a negative code")
