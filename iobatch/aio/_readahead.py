"""Reading ahead in a thread of the loop's executor, so that the loop goes on meanwhile."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iobatch._errors import is_interruption
from iobatch._pagecache import READ_AHEAD

if TYPE_CHECKING:
    import asyncio

    from iobatch._pagecache import PageCacheProbe


def start_reading(
    loop: asyncio.AbstractEventLoop, probe: PageCacheProbe
) -> asyncio.Future[int | OSError] | None:
    """Have a thread read what a probe has found not to be cached.

    Returns:
        A future for finish_reading(); None: there is no thread or descriptor to be had, so the
        sender has to read it, as the probe says next.

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
        probe.has_read()
        return None
    # The thread closes it, too; but not if it is cancelled before its turn.
    future.add_done_callback(lambda _: read_ahead.close())
    return future


def finish_reading(probe: PageCacheProbe, future: asyncio.Future[int | OSError]) -> OSError | None:
    """Tell the probe what a thread has read; return why it has read nothing."""
    # It is cancelled where the executor was shut down: then the sender has to read it.
    result = READ_AHEAD if future.cancelled() else future.result()
    if isinstance(result, OSError):
        return result
    probe.has_read(result)
    return None
