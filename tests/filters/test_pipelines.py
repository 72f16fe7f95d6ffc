"""Pipelines end to end: decoding the output gives the input."""

from __future__ import annotations

import array
import bz2
import gzip
import lzma
import random
import socket
import threading
import zlib
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from iobatch import IOBatch, iob_sendall, iob_write
from iobatch.filters import Chunked, Filter
from tests.support.batches import batch_of
from tests.support.fakes import Scripted
from tests.support.filters import (
    BODY,
    ZSTD,
    Identity,
    PartialWriteSocket,
    Swallowing,
    run_program,
    step_when_writable,
    write_and_finish,
)
from tests.support.http import unchunk
from tests.support.programs import tool
from tests.support.sockets import PATIENCE, receive_all, stream_pair
from tests.support.tls import RECORD_SIZE, TLS_VERSIONS, TLSClient

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable
    from pathlib import Path

    import trustme

    from iobatch.filters import Transform


# Sizes below and above those of TLS records and of offers.
WRITE_SIZES = [
    1,
    *sorted(random.Random(7).sample(range(2, 3000), 4)),
    RECORD_SIZE - 1,
    RECORD_SIZE + 23,
    100_003,
]


def import_or_skip(name: str) -> Any:
    return pytest.importorskip(name, reason=f"{name} is missing: pip install 'iobatch[test]'")


def brotli() -> Transform:
    compressor = import_or_skip("brotli").Compressor()
    return SimpleNamespace(compress=compressor.process, flush=compressor.finish)


def zstd() -> Transform:
    compressor: Transform = import_or_skip(ZSTD).ZstdCompressor()
    return compressor


# Of each format: a function that makes a compressor, and the program and its Debian package.
COMPRESSORS: dict[str, tuple[Callable[[], Any], tuple[str, str]]] = {
    "gzip": (lambda: zlib.compressobj(wbits=31), ("gzip", "gzip")),
    "bz2": (bz2.BZ2Compressor, ("bzip2", "bzip2")),
    "lzma": (lzma.LZMACompressor, ("xz", "xz-utils")),
    "isal": (lambda: import_or_skip("isal.isal_zlib").compressobj(wbits=31), ("gzip", "gzip")),
    "zstd": (zstd, ("zstd", "zstd")),
    "brotli": (brotli, ("brotli", "brotli")),
}


Pipeline = tuple[Filter, "Callable[[bytes], bytes]"]


def pipelines() -> dict[str, Callable[[trustme.CA], Pipeline]]:
    def compressor(name: str, _: trustme.CA) -> Pipeline:
        make, program = COMPRESSORS[name]
        path = tool(*program)
        return Filter(make()), lambda raw: run_program(path, "-dc", stdin=raw)

    def identity(_: trustme.CA) -> Pipeline:
        return Filter(Identity()), bytes

    def swallowing(_: trustme.CA) -> Pipeline:
        return Filter(Swallowing(), Filter(Identity())), bytes

    def chunked(_: trustme.CA) -> Pipeline:
        return Filter(Identity(), Filter(Chunked())), unchunk

    def tls(version: ssl.TLSVersion, ca: trustme.CA) -> Pipeline:
        client = TLSClient(ca, version, high_water=100_000)
        client.shake_hands()
        return client.filter, client.read

    def gzip_chunked_tls(version: ssl.TLSVersion, ca: trustme.CA) -> Pipeline:
        client = TLSClient(ca, version, high_water=1000)
        client.shake_hands()
        body = Filter(Chunked(), client.filter, high_water=5000)
        return (
            Filter(zlib.compressobj(1, wbits=31), body, high_water=3000),
            lambda raw: gzip.decompress(unchunk(client.read(raw))),
        )

    def callback(_: trustme.CA) -> Pipeline:
        return Filter(zlib.compressobj(wbits=31), Scripted.send), gzip.decompress

    return {
        **{name: partial(compressor, name) for name in COMPRESSORS},
        "identity": identity,
        "swallowing": swallowing,
        "chunked": chunked,
        "callback": callback,
        **{f"TLS {version.name}": partial(tls, version) for version in TLS_VERSIONS},
        **{
            f"gzip, chunked, {version.name}": partial(gzip_chunked_tls, version)
            for version in TLS_VERSIONS
        },
    }


PIPELINES = pipelines()


@pytest.mark.parametrize("name", PIPELINES)
@pytest.mark.parametrize("write_size", WRITE_SIZES)
def test_output_decodes_to_the_input_whatever_each_send_accepts(
    name: str, write_size: int, authority: trustme.CA
) -> None:
    """EAGAIN follows each partial write: inside records, chunks and offers, and between them."""
    body = BODY if write_size > 100 else BODY[-2000 - 7 * write_size :]
    pipeline, decode = PIPELINES[name](authority)
    with PartialWriteSocket(write_size) as sock:
        write_and_finish(sock, batch_of(body[:7], body[7:90], body[90:]), pipeline)
        assert decode(bytes(sock.taken)) == body


@pytest.mark.parametrize("name", COMPRESSORS)
def test_the_formats_own_program_accepts_the_compressed_stream(name: str, sock: Scripted) -> None:
    """The option -t checks the whole stream, its end included."""
    make, program = COMPRESSORS[name]
    path = tool(*program)
    write_and_finish(sock, batch_of(BODY), Filter(make()))
    run_program(path, "-t", stdin=bytes(sock.taken))


def test_file_ranges_and_buffers_go_through_a_filter_in_order(
    tmp_path: Path, sock: Scripted
) -> None:
    (tmp_path / "file").write_bytes(BODY)
    with IOBatch() as batch:
        batch.addbuf(b"header ")
        batch.addfile(tmp_path / "file", 1000)
        batch.addbuf(array.array("I", [1, 2, 3]))
        write_and_finish(sock, batch, Filter(zlib.compressobj(wbits=31)))
    expected = b"header " + BODY[1000:] + array.array("I", [1, 2, 3]).tobytes()
    assert gzip.decompress(sock.taken) == expected


def test_pipeline_may_end_in_a_descriptor(tmp_path: Path) -> None:
    with (tmp_path / "file.gz").open("wb") as file:
        pipeline = Filter(zlib.compressobj(wbits=31))
        batch = batch_of(BODY)
        while code := iob_write(file.fileno(), batch, pipeline) or pipeline.finish(file.fileno()):
            assert code > 0
    assert gzip.decompress((tmp_path / "file.gz").read_bytes()) == BODY


def test_iob_sendall_returns_only_when_the_filters_hold_nothing(authority: trustme.CA) -> None:
    client = TLSClient(authority)
    client.shake_hands()
    pipeline = Filter(Chunked(), client.filter)
    with stream_pair(buffers=4096) as (ours, theirs):
        received: list[bytes] = []
        thread = threading.Thread(target=lambda: received.append(receive_all(theirs)))
        thread.start()
        batch = batch_of(BODY)
        assert iob_sendall(ours, batch, pipeline, timeout=PATIENCE) == len(BODY)
        assert pipeline.bytesleft == client.filter.bytesleft == 0
        ours.settimeout(PATIENCE)
        step_when_writable(lambda: pipeline.finish(ours), ours, pipeline)
        ours.shutdown(socket.SHUT_WR)
        thread.join(PATIENCE)
    assert unchunk(client.read(received[0])) == BODY


def test_repr_shows_the_held_bytes_and_the_next_filter() -> None:
    pipeline = Filter(Identity(), Filter(Chunked()))
    pipeline._batch.addbuf(b"abc")
    assert "3 bytes left" in repr(pipeline)
    assert "Chunked" in repr(pipeline)
