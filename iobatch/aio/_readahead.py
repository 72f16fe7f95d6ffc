"""Reading ahead in a thread of the loop's executor, while the loop goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iobatch._errors import is_interruption
from iobatch._pagecache import READ_AHEAD

if TYPE_CHECKING:
    import asyncio

    from iobatch._pagecache import PageCacheProbe


def start_read_ahead(
    loop: asyncio.AbstractEventLoop, probe: PageCacheProbe
) -> asyncio.Future[int | OSError] | None:
    """Have a thread read the range that a probe has found not cached.

    Returns:
        A future for finish_read_ahead(). None: no thread or descriptor is available, so the send
        must read the range itself; the probe's ready() then counts it as cached.

    """
    read_ahead = probe.read_ahead()
    if read_ahead is None:
        return None
    try:
        future = loop.run_in_executor(None, read_ahead)
    except BaseException as exc:
        read_ahead.close()
        if not isinstance(exc, RuntimeError) or is_interruption(exc):
            raise
        probe.record_read()
        return None
    # The thread closes the duplicate too, but a future that is cancelled first never runs.
    future.add_done_callback(lambda _: read_ahead.close())
    return future


def finish_read_ahead(
    probe: PageCacheProbe, future: asyncio.Future[int | OSError]
) -> OSError | None:
    """Record in the probe what a thread has read; return the error if it read nothing."""
    # A shutdown of the executor cancels the future, and a broken executor raises. In both cases the
    # send must read the range itself.
    failed = future.cancelled() or future.exception() is not None
    result = READ_AHEAD if failed else future.result()
    if isinstance(result, OSError):
        return result
    probe.record_read(result)
    return None
