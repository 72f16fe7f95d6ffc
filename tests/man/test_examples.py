"""The code under EXAMPLES runs as printed, and does what the page says."""

from __future__ import annotations

import asyncio
import gzip
import os
import re
import select
import socket
import ssl
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import trio

import iobatch
from iobatch import IOB_DONE, IOBatch, iob_write
from iobatch.filters import TLS, Filter
from tests.support.anyio import read as anyio_read
from tests.support.batches import batch_of, data
from tests.support.http import unchunk
from tests.support.loops import both_loops, full_writer, read, stream, writer_pair
from tests.support.manpages import PAGES, code, example, sent
from tests.support.programs import ROOT
from tests.support.sockets import PATIENCE, receive_all, stream_pair
from tests.support.tls import TLS_VERSIONS, tls_contexts

if TYPE_CHECKING:
    from pathlib import Path

    import trustme

CONTENT = data(200_000)
HEADER = b"HTTP/1.0 200 OK\r\nContent-Length: 200000\r\n\r\n"
WITH_LINE = f"{len(CONTENT)} bytes follow\n".encode() + CONTENT


class GrowingFileBatch(IOBatch):
    """A batch whose file grows between the announcement of its length and addfile()."""

    def addfile(self, file: Any, *args: Any, **options: Any) -> None:
        with open(file.name, "ab") as growing:  # noqa: PTH123 # as in the examples
            growing.write(b"grown")
        super().addfile(file, *args, **options)


def growing_example(page: str) -> dict[str, Any]:
    """Return the names of an example, with a file that grows."""
    names = example(page)
    names["IOBatch"] = GrowingFileBatch
    return names


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Make a file that the small buffers of two connected sockets can't hold."""
    file = tmp_path / "file"
    file.write_bytes(CONTENT)
    return file


def test_example_of_the_overview_sends_a_header_and_a_file(path: Path) -> None:
    answer = example("iobatch.7")["answer"]
    assert sent(lambda sock: sock.settimeout(PATIENCE) or answer(sock, path)) == HEADER + CONTENT


@pytest.mark.parametrize(
    ("page", "function", "announced"),
    [("iobatch.7", "answer", HEADER), ("iob_sendall.3", "send_file", b"200000 bytes follow\n")],
)
def test_example_keeps_the_announced_length_of_a_file_that_grows(
    path: Path, page: str, function: str, announced: bytes
) -> None:
    """So do those of BatchWriter and send_to_stream."""
    names = growing_example(page)
    assert sent(lambda sock: names[function](sock, path)) == announced + CONTENT
    assert path.stat().st_size == len(CONTENT) + 5


def test_example_of_iobatch_announces_the_length_of_its_file(path: Path) -> None:
    batch = example("IOBatch.3")["response"](str(path))
    assert sent(lambda sock: iobatch.iob_sendall(sock, batch)) == HEADER + CONTENT


def test_example_of_iobatch_gets_its_buffer_back_when_it_was_sent() -> None:
    names = example("IOBatch.3")
    names["add"](batch := IOBatch(), b"some bytes")
    assert names["pool"] == []
    assert sent(lambda sock: iobatch.iob_send(sock, batch)) == b"some bytes"
    assert [len(buffer) for buffer in names["pool"]] == [65536]


def test_example_of_iob_send_sends_all_over_a_non_blocking_socket(path: Path) -> None:
    def send(sock: socket.socket) -> None:
        sock.setblocking(False)
        with IOBatch() as batch:
            batch.addfile(path)
            example("iob_send.3")["send"](sock, batch)

    assert sent(send) == CONTENT


def test_example_of_iob_sendmsg_passes_an_open_file(path: Path) -> None:
    with stream_pair("unix") as (ours, theirs):
        with path.open("rb") as file:
            assert example("iob_sendmsg.3")["pass_descriptor"](ours, file.fileno()) == 12
        message, [fd], _, _ = socket.recv_fds(theirs, 64, 1)
    with os.fdopen(fd, "rb") as passed:
        assert (message, passed.read()) == (b"a descriptor", CONTENT)


def test_example_of_iob_write_sends_all_over_a_non_blocking_tls_socket(
    path: Path, authority: trustme.CA
) -> None:
    server, client = tls_contexts(authority)

    def send(sock: socket.socket) -> None:
        with server.wrap_socket(sock, server_side=True) as conn, IOBatch() as batch:
            conn.setblocking(False)
            batch.addfile(path)
            example("iob_write.3")["send"](conn, batch)

    def receive(sock: socket.socket) -> bytes:
        with client.wrap_socket(sock, server_hostname="localhost") as conn:
            return receive_all(conn)

    assert sent(send, receive) == CONTENT


def test_example_of_iob_sendall_sends_a_line_and_a_file(path: Path) -> None:
    assert sent(lambda sock: example("iob_sendall.3")["send_file"](sock, path)) == WITH_LINE


def test_example_of_filter_sends_a_file_compressed_and_in_chunks(path: Path) -> None:
    def send(sock: socket.socket) -> None:
        sock.setblocking(False)
        example("Filter.3")["send_body"](sock, path)

    assert gzip.decompress(unchunk(sent(send))) == CONTENT


def test_adapter_for_brotli_in_the_page_of_filter_is_a_transform() -> None:
    brotli = pytest.importorskip("brotli", reason="brotli is missing: pip install brotli")
    namespace: dict[str, object] = {"brotli": brotli}
    exec(code("Filter.3", "DESCRIPTION"), namespace)
    transform = namespace["Brotli"]()  # type: ignore[operator]
    coded = transform.compress(memoryview(b"some text")) + transform.compress(b"")
    assert brotli.decompress(coded + transform.flush()) == b"some text"


def test_example_of_chunked_makes_a_chunk_of_each_part() -> None:
    """An empty part makes none: an empty chunk would end the body."""
    parts = ["one", "", "three"]
    raw = sent(lambda sock: example("Chunked.3")["send_chunks"](sock, parts))
    assert raw == b"3\r\none\r\n5\r\nthree\r\n0\r\n\r\n"


def test_example_of_tls_answers_a_request_and_ends_with_close_notify(
    authority: trustme.CA,
) -> None:
    server, client = tls_contexts(authority)

    def receive(sock: socket.socket) -> bytes:
        # An end without close_notify raises here.
        with client.wrap_socket(
            sock, server_hostname="localhost", suppress_ragged_eofs=False
        ) as conn:
            conn.send(b"a question")
            return receive_all(conn)

    text = "an answer " * 10_000
    got = sent(lambda sock: example("TLS.3")["answer"](sock, server, text), receive)
    assert got == text.encode()


@pytest.mark.parametrize("version", TLS_VERSIONS, ids=lambda version: version.name)
def test_example_of_tls_shakes_hands_on_both_sides(
    version: ssl.TLSVersion, authority: trustme.CA
) -> None:
    """The first data may arrive with the end of the handshake."""
    shake_hands = example("TLS.3")["shake_hands"]

    def side(sock: socket.socket, context: ssl.SSLContext, **options: Any) -> bytes:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        sslobject = context.wrap_bio(incoming, outgoing, **options)
        tls = TLS(sslobject, incoming, outgoing)
        out = Filter(tls)
        sock.setblocking(False)
        plain: bytes = shake_hands(sock, sslobject, tls, out)
        assert iob_write(sock, batch_of(b"hello"), out) == 5
        assert out.drain(sock) == IOB_DONE
        while len(plain) < 5:
            assert select.select([sock], [], [], PATIENCE)[0]
            plain += tls.receive(sock.recv(65536))
        return plain

    server, client = tls_contexts(authority, version)
    with ThreadPoolExecutor(1) as pool, stream_pair() as (ours, theirs):
        other = pool.submit(side, theirs, client, server_hostname="localhost")
        assert side(ours, server, server_side=True) == b"hello"
        assert other.result(PATIENCE) == b"hello"


def test_example_of_tls_sends_the_alert_of_a_failed_handshake(authority: trustme.CA) -> None:
    server, client = tls_contexts(authority, ssl.TLSVersion.TLSv1_3)
    client.maximum_version = ssl.TLSVersion.TLSv1_2

    def send(sock: socket.socket) -> None:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        sslobject = server.wrap_bio(incoming, outgoing, server_side=True)
        tls = TLS(sslobject, incoming, outgoing)
        with pytest.raises(ssl.SSLError, match="UNSUPPORTED_PROTOCOL"):
            example("TLS.3")["shake_hands"](sock, sslobject, tls, Filter(tls))

    def receive(sock: socket.socket) -> bytes:
        with pytest.raises(ssl.SSLError) as caught:
            client.wrap_socket(sock, server_hostname="localhost")
        return str(caught.value).encode()

    assert b"ALERT_PROTOCOL_VERSION" in sent(send, receive)


@both_loops
async def test_example_of_batch_writer_sends_a_line_and_a_file(path: Path) -> None:
    with writer_pair(buffers=4096) as (writer, peer):
        serving = asyncio.create_task(example("BatchWriter.3")["serve"](writer.sock, path))
        assert await read(peer, len(WITH_LINE)) == WITH_LINE
        assert await serving == len(WITH_LINE)


@both_loops
async def test_example_of_batch_writer_keeps_the_announced_length(path: Path) -> None:
    with writer_pair(buffers=4096) as (writer, peer):
        serving = asyncio.create_task(growing_example("BatchWriter.3")["serve"](writer.sock, path))
        assert await read(peer, len(WITH_LINE)) == WITH_LINE
        assert await serving == len(WITH_LINE)


def tls_client(
    sock: socket.socket, context: ssl.SSLContext, *, end_with_data: bool = False
) -> bytes:
    """Wait for the greeting, send "data" and close_notify, and receive up to close_notify."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    sslobject = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    tls = TLS(sslobject, incoming, outgoing)
    sock.setblocking(False)
    plain: bytes = example("TLS.3")["shake_hands"](sock, sslobject, tls, Filter(tls))
    sock.settimeout(PATIENCE)
    while plain != b"hello\n":
        plain += tls.receive(sock.recv(65536))
    sslobject.write(b"data")
    if not end_with_data:
        sock.sendall(outgoing.read())
        while plain != b"hello\ndata":
            plain += tls.receive(sock.recv(65536))
    with suppress(ssl.SSLWantReadError):
        sslobject.unwrap()
    sock.sendall(outgoing.read())
    with suppress(ssl.SSLZeroReturnError):
        while not tls.ended:
            plain += tls.receive(sock.recv(65536))
    return plain


@both_loops
@pytest.mark.parametrize(
    ("version", "end_with_data"),
    [(ssl.TLSVersion.TLSv1_2, False), (ssl.TLSVersion.TLSv1_3, False), (None, True)],
    ids=["1.2", "1.3", "close_notify with data"],
)
async def test_tls_example_of_batch_writer_speaks_first_and_answers_the_end(
    version: ssl.TLSVersion | None, authority: trustme.CA, *, end_with_data: bool
) -> None:
    server, client = tls_contexts(authority, version)
    with stream_pair("tcp4") as (ours, theirs):
        ours.setblocking(False)
        receiving = asyncio.create_task(
            asyncio.to_thread(tls_client, theirs, client, end_with_data=end_with_data)
        )
        await example("BatchWriter.3")["echo"](ours, server)
        assert await receiving == b"hello\ndata"


@both_loops
async def test_tls_example_of_batch_writer_sends_the_alert_of_a_failed_handshake(
    authority: trustme.CA,
) -> None:
    server, client = tls_contexts(authority, ssl.TLSVersion.TLSv1_3)
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    with stream_pair("tcp4") as (ours, theirs):
        ours.setblocking(False)
        receiving = asyncio.create_task(asyncio.to_thread(tls_client, theirs, client))
        with pytest.raises(ssl.SSLError, match="UNSUPPORTED_PROTOCOL"):
            await example("BatchWriter.3")["echo"](ours, server)
        with pytest.raises(ssl.SSLError, match="ALERT_PROTOCOL_VERSION"):
            await receiving


@both_loops
async def test_server_example_of_batch_writer_serves_each_client_and_closes(
    authority: trustme.CA, tmp_path: Path
) -> None:
    """A client that breaks off before its handshake ends only its own connection."""
    pem = tmp_path / "server.pem"
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(pem))
    _, client = tls_contexts(authority)
    names = example("BatchWriter.3")
    listener = socket.create_server(("127.0.0.1", 0))
    names["socket"] = SimpleNamespace(create_server=lambda _: listener, SHUT_WR=socket.SHUT_WR)
    serving = asyncio.create_task(names["serve_tls"](None, pem, pem))
    address = listener.getsockname()
    socket.create_connection(address).close()
    with socket.create_connection(address) as first, socket.create_connection(address) as second:
        clients = [asyncio.to_thread(tls_client, each, client) for each in (first, second)]
        assert await asyncio.gather(*clients) == [b"hello\ndata"] * 2
        for each in (first, second):
            assert await asyncio.to_thread(receive_all, each) == b""
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving


@both_loops
async def test_example_of_write_operation_sends_the_rest_after_its_timeout() -> None:
    send_in_two = example("WriteOperation.3")["send_in_two"]
    with full_writer() as (writer, peer):
        sending = asyncio.create_task(send_in_two(writer, batch_of(b"abc")))
        await asyncio.sleep(0)
        [operation] = writer._sender.queue.writes
        writer._sender.expire(operation)
        assert await peer.read(3) == b"abc"
        await sending
        await send_in_two(writer, IOBatch())


@both_loops
async def test_example_of_send_to_stream_sends_a_line_and_a_file(path: Path) -> None:
    async with stream(buffers=4096) as (writer, peer):
        sending = asyncio.create_task(example("send_to_stream.3")["send_file"](writer, str(path)))
        assert await read(peer, len(WITH_LINE)) == WITH_LINE
        assert await sending == len(WITH_LINE)


@both_loops
async def test_example_of_send_to_stream_keeps_the_announced_length(path: Path) -> None:
    async with stream(buffers=4096) as (writer, peer):
        names = growing_example("send_to_stream.3")
        sending = asyncio.create_task(names["send_file"](writer, str(path)))
        assert await read(peer, len(WITH_LINE)) == WITH_LINE
        assert await sending == len(WITH_LINE)


@pytest.mark.parametrize("growing", [False, True])
def test_example_of_send_batch_sends_a_line_and_a_file_over_trio(
    path: Path, *, growing: bool
) -> None:
    names = (growing_example if growing else example)("send_batch.3")

    async def main() -> bytes:
        with stream_pair("tcp4", buffers=4096) as (ours, theirs):
            theirs.setblocking(False)
            async with trio.open_nursery() as nursery:
                with trio.socket.from_stdlib_socket(ours.dup()) as sock:
                    stream = trio.SocketStream(sock)
                    nursery.start_soon(names["send_file"], stream, str(path))
                    return await anyio_read(theirs, len(WITH_LINE))

    assert trio.run(main) == WITH_LINE


def ask(sock: socket.socket, context: ssl.SSLContext) -> bytes:
    """Send a question over TLS, and return all that the server sends."""
    with context.wrap_socket(sock, server_hostname="localhost") as conn:
        conn.sendall(b"question")
        return receive_all(conn)


@pytest.mark.anyio
@pytest.mark.parametrize(
    "anyio_backend", [("asyncio", {}), ("asyncio", {"use_uvloop": True}), ("trio", {})], ids=str
)
async def test_example_of_send_batch_answers_over_tls(authority: trustme.CA) -> None:
    server, client = tls_contexts(authority)
    with stream_pair() as (ours, theirs), ThreadPoolExecutor(1) as pool:
        ours.setblocking(False)
        receiving = pool.submit(ask, theirs, client)
        await example("send_batch.3")["answer"](ours, server, "the answer")
        assert receiving.result(PATIENCE) == b"the answer"


def test_every_announced_size_is_that_of_the_open_file() -> None:
    """A size by the path may be that of another file. README has an example, too."""
    for file in (*PAGES, *(ROOT / "examples").iterdir(), ROOT / "README.md"):
        assert not re.search(r"getsize|\.stat\(", file.read_text()), file
