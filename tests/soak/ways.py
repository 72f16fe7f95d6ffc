"""Every way to send a batch, repeated among hostile peers."""

from __future__ import annotations

import ssl
import warnings
from contextlib import contextmanager
from random import Random
from typing import TYPE_CHECKING

import pytest
import trustme

from tests.soak.batches import Batches
from tests.soak.calls import SENDERS, run_calls
from tests.soak.flatness import Flatness, sample
from tests.soak.tasks import USES, run_tasks
from tests.support.tls import tls_contexts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.soak.calls import Contexts

WAYS = (*SENDERS, *USES)
# How many of all batches go in a way, in comparison: a way that costs more sends fewer.
SHARES = dict.fromkeys(WAYS, 6) | {
    "iob_sendall": 3,
    "send_batch, trio": 3,
    "iob_write, TLS": 2,
    "BatchWriter, TLS, asyncio": 2,
    "iob_write, gzip, chunked": 1,
    "iob_write, gzip, chunked, TLS": 1,
}


def new_contexts() -> Contexts:
    return tls_contexts(trustme.CA(), ssl.TLSVersion.TLSv1_3)


def soak_way(
    name: str,
    folder: Path,
    contexts: Contexts,
    *,
    batches: int,
    samples: int,
    late: Callable[[], bool] = bool,
) -> Flatness:
    """Send batches in one way, and return whether what the process holds is flat.

    Args:
        name: one of WAYS.
        folder: for the files of batches.
        contexts: the TLS contexts of both sides.
        batches: the number of batches.
        samples: the number of samples that are taken meanwhile.
        late: after a sample, whether to end early.

    """
    run = run_calls if name in SENDERS else run_tasks
    count = batches // samples
    with (
        Batches(folder, Random(name)) as source,
        _quick_threads(),
        warnings.catch_warnings(),
    ):
        # A batch that is dropped with owned files is reported. They are closed, as are its others.
        warnings.filterwarnings("ignore", "unclosed file in <IOBatch", ResourceWarning)
        run(name, source, contexts, count)
        flatness = Flatness(sample())
        flatness = Flatness(sample())  # the first sample and its judge exist by now
        for _ in range(samples):
            run(name, source, contexts, count)
            flatness.add(sample(), count)
            if late():
                break
        assert source.released == source.hooks, f"{source.released} of {source.hooks} hooks ran"
    return flatness


@contextmanager
def _quick_threads() -> Iterator[None]:
    """Have trio end the threads that have nothing to do, before the next sample."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trio._core._thread_cache.IDLE_TIMEOUT", 0.01)
        yield
