"""The types of the parameters of this library, for annotations in other programs.

    Buffer              an object with a buffer, as IOBatch.addbuf takes it
    HasFileno           a file or socket object: it has fileno()
    OpenFile            a file object as IOBatch.addfile_close takes it: it has close() too
    WriteCallback[S]    a callback of iob_write, with the type of its socket
    Through             the `through` of BatchWriter and its writes
    Seconds             the timeout of a write: a number, None or `...`
    DoneCallback        called with a WriteOperation that has ended
    BufferDoneCallback  called with the writer, the data and the number of bytes sent

This module imports iobatch.aio, and so asyncio. In Python 3.11 Buffer is `object` at run time.
"""

from iobatch._arguments import Buffer, HasFileno, OpenFile
from iobatch._write import WriteCallback
from iobatch.aio._operation import DoneCallback
from iobatch.aio._pipelines import Through
from iobatch.aio._writer import BufferDoneCallback, Seconds

__all__ = [
    "Buffer",
    "BufferDoneCallback",
    "DoneCallback",
    "HasFileno",
    "OpenFile",
    "Seconds",
    "Through",
    "WriteCallback",
]
