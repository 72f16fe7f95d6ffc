"""Posted writes on an asyncio loop: batches go out in the order in which they were posted."""

from iobatch.aio._operation import CancellationType, WriteOperation, WriteStatus
from iobatch.aio._stream import send_to_stream
from iobatch.aio._writer import BatchWriter

__all__ = ["BatchWriter", "CancellationType", "WriteOperation", "WriteStatus", "send_to_stream"]
