"""Posted writes on an asyncio or uvloop event loop: batches go out in the order of posting."""

from iobatch.aio._operation import WriteOperation
from iobatch.aio._posted import CancellationType, WriteStatus
from iobatch.aio._stream import send_to_stream
from iobatch.aio._writer import BatchWriter

__all__ = ["BatchWriter", "CancellationType", "WriteOperation", "WriteStatus", "send_to_stream"]
