"""Batches of byte buffers and file ranges, sent in as few system calls as possible.

    iobatch           IOBatch: the list. iob_send, iob_sendmsg, iob_write, iob_sendall: send it.
                      IOB_DONE, IOB_AGAIN, IOB_ERROR: what they return, besides numbers of bytes.
                      TruncatedFileError. COPY_LIMIT, SEND_LIMIT, WRITE_LIMIT.
                      COMPILED: whether the compiled hot path is in use.
    iobatch.filters   Filter, Transform, Chunked, TLS: compression, chunked coding and TLS.
    iobatch.aio       BatchWriter, WriteOperation, WriteStatus, CancellationType: posted writes on
                      asyncio and uvloop. send_to_stream: over an asyncio stream.
    iobatch.anyio     send_batch: sends a whole batch under trio, and under anyio.
    iobatch.typing    Types for annotations.
    iobatch.httpd     A file server: python -m iobatch.httpd.

The man pages are installed with the package. iobatch(7) is the overview, and iobatch-httpd(1)
describes the server. Each function, and each class with methods, has a page of its own in section
3, such as IOBatch(3). iobatch-libowfat(7), iobatch-asio(7), iobatch-winsock(7),
iobatch-lispworks(7), iobatch-libevent(7) and iobatch-asyncio(7) list what to write here for the
calls of another library.
"""

from iobatch._batch import IOBatch
from iobatch._core import IOB_AGAIN, IOB_DONE, IOB_ERROR
from iobatch._errors import TruncatedFileError
from iobatch._forms import COMPILED
from iobatch._send import COPY_LIMIT, SEND_LIMIT, iob_send, iob_sendmsg
from iobatch._sendall import iob_sendall
from iobatch._write import WRITE_LIMIT, iob_write

__all__ = [
    "COMPILED",
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
