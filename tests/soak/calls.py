"""The calls that send without an event loop: iob_send, iob_sendmsg, iob_write and iob_sendall."""

from __future__ import annotations

import socket
import ssl
import zlib
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from iobatch import IOB_AGAIN, IOB_DONE, IOB_ERROR, iob_send, iob_sendall, iob_sendmsg, iob_write
from iobatch.filters import TLS, Chunked, Filter
from tests.soak.peers import Connection

if TYPE_CHECKING:
    from collections.abc import Callable

    from iobatch import IOBatch
    from tests.soak.batches import Batches

    Contexts = tuple[ssl.SSLContext, ssl.SSLContext]

# The turns of a peer after which a sender gives up, if the peer doesn't read any more.
PATIENT_TURNS = 20
# The mean number of batches of a connection that is not lost.
BATCHES_OF_A_CONNECTION = 40


class Sender:
    """Sends batches over one connection by repeated calls; a subclass calls another function."""

    kind = "tcp4"

    def __init__(self, batches: Batches, contexts: Contexts) -> None:
        self.contexts = contexts
        self.connection = Connection(self.kind, batches, self.decode)
        self.sock = self.connection.sock

    def decode(self, raw: bytes) -> bytes:
        return raw

    def step(self, batch: IOBatch) -> int:
        return iob_send(self.sock, batch)

    def error_of(self, batch: IOBatch) -> OSError | None:
        return batch.error

    def finish(self) -> int:
        return IOB_DONE

    def send(self, batch: IOBatch) -> None:
        self.run(partial(self.step, batch), batch)

    def run(self, step: Callable[[], int], batch: IOBatch | None = None) -> None:
        """Repeat a step to its end, or until the connection is of no use any more."""
        connection = self.connection
        turns = 0
        while code := step():
            if code == IOB_ERROR:
                error = self.error_of(batch) if batch is not None else self.error
                connection.fail(error or AssertionError("a code without an error"))
                return
            connection.turn()
            if code == IOB_AGAIN and connection.lost:
                turns += 1
                if turns == PATIENT_TURNS:
                    connection.complete = False
                    return

    @property
    def error(self) -> OSError | None:
        return None


class UnixSender(Sender):
    kind = "unix"


class DescriptorSender(Sender):
    kind = "socketpair"

    def step(self, batch: IOBatch) -> int:
        return iob_send(self.sock.fileno(), batch)


class MessageSender(Sender):
    kind = "seqpacket"

    def step(self, batch: IOBatch) -> int:
        return iob_sendmsg(self.sock, batch)


class CallbackSender(Sender):
    def step(self, batch: IOBatch) -> int:
        return iob_write(self.sock, batch, socket.socket.send)


class AllSender(Sender):
    """Calls iob_sendall, which never waits, because the peer is in the same thread."""

    def send(self, batch: IOBatch) -> None:
        self.run(partial(self.step, batch))

    def step(self, batch: IOBatch) -> int:
        self._error = None
        try:
            iob_sendall(self.sock, batch, timeout=0, progress=self._progress)
        except TimeoutError as exc:
            if exc.errno is None:
                return IOB_AGAIN
            self._error = exc
        except OSError as exc:
            self._error = exc
        return IOB_ERROR if self._error else IOB_DONE

    def _progress(self, _nbytes: int) -> None:
        self.connection.turn()

    @property
    def error(self) -> OSError | None:
        return self._error


class FilterSender(Sender):
    """Writes through filters, which all end with the connection."""

    def __init__(self, batches: Batches, contexts: Contexts) -> None:
        super().__init__(batches, contexts)
        self.chunks, self.gunzip = Unchunked(), zlib.decompressobj(31)
        self.pipeline = self.new_pipeline()

    def new_pipeline(self) -> Filter:
        return Filter(zlib.compressobj(1, wbits=31), Filter(Chunked()))

    def decode(self, raw: bytes) -> bytes:
        return self.gunzip.decompress(self.chunks.decode(raw))

    def step(self, batch: IOBatch) -> int:
        return iob_write(self.sock, batch, self.pipeline)

    def finish(self) -> int:
        return self.pipeline.finish(self.sock)

    @property
    def error(self) -> OSError | None:
        return self.pipeline.error


class TLSSender(FilterSender):
    """Writes over TLS; the handshake is made in memory."""

    def new_pipeline(self) -> Filter:
        transform, self.client, self.incoming = shake_hands(self.contexts)
        return Filter(transform)

    def decode(self, raw: bytes) -> bytes:
        return decrypt(self.client, self.incoming, raw)


class CodedTLSSender(TLSSender):
    def new_pipeline(self) -> Filter:
        tls = super().new_pipeline()
        return Filter(zlib.compressobj(1, wbits=31), Filter(Chunked(), tls))

    def decode(self, raw: bytes) -> bytes:
        return self.gunzip.decompress(self.chunks.decode(super().decode(raw)))


SENDERS = {
    "iob_send, TCP": Sender,
    "iob_send, Unix": UnixSender,
    "iob_send, descriptor": DescriptorSender,
    "iob_sendmsg": MessageSender,
    "iob_write": CallbackSender,
    "iob_write, gzip, chunked": FilterSender,
    "iob_write, TLS": TLSSender,
    "iob_write, gzip, chunked, TLS": CodedTLSSender,
    "iob_sendall": AllSender,
}


def run_calls(name: str, batches: Batches, contexts: Contexts, count: int) -> None:
    """Send this number of batches over as many connections as that takes."""
    random = batches.random
    while count:
        sender = SENDERS[name](batches, contexts)
        connection = sender.connection
        with connection.sock, connection.peer:
            while count and connection.complete:
                count -= 1
                batch, content = batches.any()
                connection.give(content)
                sender.send(batch)
                if random.random() < 0.5:
                    batch.reset()  # otherwise its finalizer does the same
                if random.random() < 1 / BATCHES_OF_A_CONNECTION:
                    break
            if connection.complete:
                sender.run(sender.finish)
            connection.close()
        batch.reset()
        del sender, connection, batch


def shake_hands(contexts: Contexts) -> tuple[TLS, ssl.SSLObject, ssl.MemoryBIO]:
    """Return a server's transform after its handshake, its client, and the client's input."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = contexts[0].wrap_bio(to_server, to_client, server_side=True)
    client = contexts[1].wrap_bio(to_client, to_server, server_hostname="localhost")
    for side in (client, server, client, server):
        with suppress(ssl.SSLWantReadError):
            side.do_handshake()
    return TLS(server, to_server, to_client), client, to_client


def decrypt(client: ssl.SSLObject, incoming: ssl.MemoryBIO, raw: bytes) -> bytes:
    """Return the plain bytes of all records that are whole by now."""
    incoming.write(raw)
    plain = bytearray()
    with suppress(ssl.SSLWantReadError, ssl.SSLZeroReturnError):
        while piece := client.read(1 << 14):
            plain += piece
    return bytes(plain)


class Unchunked:
    """Decodes a chunked body piece by piece."""

    def __init__(self) -> None:
        self._raw = bytearray()

    def decode(self, raw: bytes) -> bytes:
        """Return the content of all chunks that are whole by now."""
        self._raw += raw
        content = bytearray()
        while (end := self._raw.find(b"\r\n")) >= 0:
            start, size = end + 2, int(self._raw[:end], 16)
            if len(self._raw) < start + size + 2:
                break
            content += self._raw[start : start + size]
            assert self._raw[start + size : start + size + 2] == b"\r\n"
            del self._raw[: start + size + 2]
        return bytes(content)
