"""Transforms whose calls are recorded and can fail, and the decoders of what they make."""

from __future__ import annotations

import errno
import functools
import importlib
import ssl
import zlib
from typing import TYPE_CHECKING, Any

import trustme
from hypothesis import strategies as st

from iobatch.filters import Chunked, Filter
from tests.support.filters import ZSTD, Growing, Identity, Swallowing
from tests.support.tls import RECORD_SIZE, TLS_VERSIONS, TLSClient

if TYPE_CHECKING:
    from collections.abc import Callable

zstd: Any = importlib.import_module(ZSTD)
authority = functools.cache(trustme.CA)
TRANSFORMS: dict[str, Callable[[], Any]] = {
    "gzip": lambda: zlib.compressobj(wbits=31),
    "zstd": zstd.ZstdCompressor,
    "chunked": Chunked,
    "identity": Identity,
    "swallowing": Swallowing,
    "growing": Growing,
}
FAULTS: dict[str, Callable[[], Exception]] = {
    "OSError": lambda: OSError(errno.EIO, "transform"),
    "SSLError": lambda: ssl.SSLError(1, "transform"),
    "BlockingIOError": lambda: BlockingIOError(errno.EAGAIN, "transform"),
    "ValueError": lambda: ValueError("transform"),
    "SSLWantReadError": lambda: ssl.SSLWantReadError(ssl.SSL_ERROR_WANT_READ, "transform"),
}
HIGH_WATER = st.sampled_from([1, 1000, 50_000, 256 * 1024])
CODECS = st.lists(
    st.tuples(st.sampled_from(sorted(TRANSFORMS)), HIGH_WATER),
    max_size=3,
    unique_by=lambda codec: codec[0],
)
ENDS = ("socket", "callback", *(version.name for version in TLS_VERSIONS))


class Recorder:
    """A transform that keeps what goes in and out; `fault` is raised once by the next call."""

    def __init__(self, transform: Any) -> None:
        self.transform = transform
        self.taken = bytearray()
        self.output = bytearray()
        self.fault: Exception | None = None
        self.flushes = 0
        self.raised = False

    def _raise(self) -> None:
        fault, self.fault = self.fault, None
        if fault is not None:
            self.raised = not isinstance(fault, ssl.SSLWantReadError)
            raise fault

    def compress(self, data: Any) -> Any:
        assert not self.flushes, "called after flush()"
        self._raise()
        given = bytes(data)
        output = self.transform.compress(data)
        self.taken += given
        self.output += output
        return output

    def flush(self) -> Any:
        self._raise()
        self.flushes += 1
        assert self.flushes == 1, "flushed twice"
        output = self.transform.flush()
        self.output += output
        return output


def make_tls(version: str, high_water: int) -> tuple[Recorder, Filter, TLSClient]:
    """Return a recorder, its filter, and the client that has shaken hands with the filter."""
    client = TLSClient(authority(), ssl.TLSVersion[version])
    client.shake_hands()
    recorder = Recorder(client.tls)
    return recorder, Filter(recorder, high_water=high_water), client


def decode(name: str, coded: bytes, client: TLSClient | None = None) -> bytes:
    """Return what a whole stream of a coding contains; fail if its end is missing."""
    if name == "gzip":
        decoder = zlib.decompressobj(wbits=31)
        plain = decoder.decompress(coded)
        assert decoder.eof
        assert not decoder.unused_data
        return plain
    if name == "zstd":
        plain = zstd.decompress(coded)
        return bytes(plain)
    if name == "chunked":
        return _unchunk(coded)
    if name == "growing":
        assert coded == b"".join(bytes([byte]) * 100 for byte in coded[::100])
        return coded[::100]
    if name.startswith("TLS"):
        assert client is not None
        return _decrypt(client, coded)
    return coded


def _decrypt(client: TLSClient, coded: bytes) -> bytes:
    client.incoming.write(coded)
    plain = bytearray()
    try:
        while True:
            piece = client.sslobject.read(RECORD_SIZE)
            plain += piece
            if not piece:
                break
    except ssl.SSLZeroReturnError:
        pass
    assert not client.incoming.pending, "bytes follow close_notify"
    return bytes(plain)


def _unchunk(coded: bytes) -> bytes:
    plain = bytearray()
    while True:
        head, _, coded = coded.partition(b"\r\n")
        size = int(head, 16)
        plain += coded[:size]
        assert coded[size : size + 2] == b"\r\n"
        coded = coded[size + 2 :]
        if not size:
            assert not coded, "bytes follow the last chunk"
            return bytes(plain)
