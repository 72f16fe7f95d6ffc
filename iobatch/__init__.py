"""Batches of byte buffers and file ranges, sent in as few system calls as possible.

IOBatch is the list. iob_send, iob_sendmsg, iob_write and iob_sendall send it.

Other modules: iobatch.filters (compression, chunked coding, TLS), iobatch.aio (asyncio and uvloop),
iobatch.typing (types for annotations) and iobatch.httpd (a file server, a program).

The man pages are installed with the package: iobatch(7) is the overview, iobatch-httpd(1) describes
the server, and each function, and each class with methods, has a page of its own in section 3, such
as IOBatch(3).
"""

from iobatch._batch import IOBatch
from iobatch._core import IOB_AGAIN, IOB_DONE, IOB_ERROR
from iobatch._errors import TruncatedFileError
from iobatch._send import COPY_LIMIT, SEND_LIMIT, iob_send, iob_sendmsg
from iobatch._sendall import iob_sendall
from iobatch._write import WRITE_LIMIT, iob_write

__all__ = [
    "COPY_LIMIT",
    "IOB_AGAIN",
    "IOB_DONE",
    "IOB_ERROR",
    "SEND_LIMIT",
    "WRITE_LIMIT",
    "IOBatch",
    "TruncatedFileError",
    "iob_send",
    "iob_sendall",
    "iob_sendmsg",
    "iob_write",
]
