"""Filters: what goes in comes out, whatever the socket, the transform and the peer do."""

from __future__ import annotations

import array
import bz2
import errno
import gc
import gzip
import lzma
import random
import select
import shutil
import socket
import ssl
import subprocess
import threading
import weakref
import zlib
from collections import deque
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from selectors import EVENT_READ, EVENT_WRITE
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from iobatch import IOB_AGAIN, IOB_DONE, IOB_ERROR, WRITE_LIMIT, IOBatch, iob_sendall, iob_write
from iobatch.filters import TLS, Chunked, Filter
from tests.helpers import (
    PATIENCE,
    Scripted,
    again,
    check_invariants,
    clog,
    data,
    receive_all,
    stream_pair,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from iobatch.filters import Transform

BODY = data(150_000) + b"The same again and again. " * 8_000
VERSIONS = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)
RECORD = 16 * 1024
# How much a dripping socket takes at a time: odd numbers, around the sizes of records and offers.
DRIPS = [1, *sorted(random.Random(7).sample(range(2, 3000), 4)), RECORD - 1, RECORD + 23, 100_003]


# Programs that decode


def run(*command: str, stdin: bytes = b"") -> bytes:
    """Run a program that is not ours, and return what it writes."""
    if not shutil.which(command[0]):
        pytest.skip(f"{command[0]} is missing: install it")
    return subprocess.run(
        command, input=stdin, capture_output=True, timeout=PATIENCE, check=True
    ).stdout


def imported(name: str) -> Any:
    return pytest.importorskip(name, reason=f"{name} is missing: pip install {name}")


def brotli() -> Transform:
    compressor = imported("brotli").Compressor()
    return SimpleNamespace(compress=compressor.process, flush=compressor.finish)


COMPRESSORS: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    "gzip": (lambda: zlib.compressobj(wbits=31), ("gzip", "-dc")),
    "bz2": (bz2.BZ2Compressor, ("bzip2", "-dc")),
    "lzma": (lzma.LZMACompressor, ("xz", "-dc")),
    "zstandard": (
        lambda: imported("zstandard").ZstdCompressor().compressobj(),
        ("zstd", "-dc"),
    ),
    "brotli": (brotli, ("brotli", "-dc")),
}
# What the tests need is installed, but this comes with Python 3.14 or not at all.
if find_spec("compression"):
    COMPRESSORS["compression.zstd"] = (
        lambda: imported("compression.zstd").ZstdCompressor(),
        ("zstd", "-dc"),
    )


def unchunk(raw: bytes) -> bytes:
    """Decode chunked coding strictly, up to the last byte."""
    body = bytearray()
    while True:
        size, _, raw = raw.partition(b"\r\n")
        count = int(size, 16)
        body += raw[:count]
        assert raw[count : count + 2] == b"\r\n"
        raw = raw[count + 2 :]
        if not count:
            assert not raw
            return bytes(body)


# Transforms


class Identity:
    """Returns its input itself."""

    def compress(self, data: Any) -> Any:
        return data

    def flush(self) -> bytes:
        return b""


class Counting(Identity):
    """Notes how much it is given."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def compress(self, data: Any) -> Any:
        if data:
            self.sizes.append(len(data))
        return data

    def take(self) -> int:
        """Return what was given since the last time."""
        total = sum(self.sizes)
        self.sizes.clear()
        return total


class Swallowing(Identity):
    """Says nothing before the end."""

    def __init__(self) -> None:
        self.kept = bytearray()

    def compress(self, data: Any) -> bytearray:
        self.kept += data
        return bytearray()

    def flush(self) -> bytes:
        return bytes(self.kept)


class Growing(Identity):
    """Makes a hundred of each byte."""

    def compress(self, data: Any) -> bytes:
        return b"".join(bytes([byte]) * 100 for byte in data)


class Dropping(Identity):
    """Returns nothing for anything."""

    def compress(self, data: Any) -> bytes:
        return b""


class Raising(Identity):
    """Raises what it is told to, once."""

    def __init__(self, *script: BaseException | None, end: BaseException | None = None) -> None:
        self.script = deque(script)
        self.end = end
        self.calls = 0

    def compress(self, data: Any) -> Any:
        self.calls += bool(data)
        if data and self.script and (exc := self.script.popleft()):
            raise exc
        return data

    def flush(self) -> bytes:
        if self.end is not None:
            raise self.end
        return b""


# Sockets


class Dripping(Scripted):
    """Takes `drip` bytes, says EAGAIN, takes `drip` bytes, and so on."""

    def __init__(self, drip: int) -> None:
        super().__init__()
        self.drip = drip

    def _take(self, name: str, pieces: Any, flags: int) -> int:
        if not self.script:
            self.script.extend((self.drip, again()))
        return super()._take(name, pieces, flags)


@pytest.fixture
def sock() -> Iterator[Scripted]:
    """Give a socket that takes everything."""
    with Scripted() as scripted:
        yield scripted


@pytest.fixture(autouse=True)
def checked_leaks(no_leaks: None) -> None:
    """No test leaves a descriptor open."""


# Driving


def filled(*pieces: bytes) -> IOBatch:
    batch = IOBatch()
    for piece in pieces:
        batch.addbuf(piece)
    return batch


def check(out: Filter) -> None:
    """Check what holds of a pipeline between any two calls."""
    each: Any = out
    while isinstance(each, Filter):
        check_invariants(each._batch)
        assert each.bytesleft == each._batch.bytesleft
        each = each.then


def complete(sock: Scripted, step: Callable[[], int], out: Filter) -> None:
    """Step until 0, past any "again"; only a socket that was asked may be the reason of one."""
    for _ in range(1_000_000):
        asked = len(sock.calls)
        code = step()
        check(out)
        assert code != IOB_ERROR, out.error
        assert code != IOB_AGAIN or len(sock.calls) > asked
        if code == IOB_DONE:
            return
    raise AssertionError("it does not end")


def send(sock: Any, batch: IOBatch, out: Filter, **options: Any) -> None:
    """Send a whole batch and the end of the stream."""
    complete(sock, lambda: iob_write(sock, batch, out, **options), out)
    complete(sock, lambda: out.finish(sock), out)
    assert not batch
    assert out.error is None


def write_some(sock: Any, batch: IOBatch, out: Filter) -> int:
    """Write until it says something else than a count; return that."""
    while (code := iob_write(sock, batch, out)) > 0:
        check(out)
    return code


# TLS, in memory


class Client:
    """A TLS client without a socket, and the server's filter that it is connected to."""

    def __init__(
        self,
        authority: trustme.CA,
        version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
        **options: Any,
    ) -> None:
        ours, theirs = contexts(authority, version)
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.sslobject = theirs.wrap_bio(self.incoming, self.outgoing, server_hostname="localhost")
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.server = ours.wrap_bio(incoming, outgoing, server_side=True)
        self.tls = TLS(self.server, incoming, outgoing)
        self.out = Filter(self.tls, **options)

    def shake_hands(self) -> None:
        with Scripted() as sock:
            for _ in range(3):
                with suppress(ssl.SSLWantReadError):
                    self.sslobject.do_handshake()
                if said := self.outgoing.read():
                    assert self.tls.receive(said) == b""
                complete(sock, lambda: self.out.drain(sock), self.out)
                self.incoming.write(bytes(sock.taken))
                sock.taken.clear()

    def read(self, raw: bytes = b"") -> bytes:
        """Decrypt what came; the end is to be close_notify."""
        self.incoming.write(raw)
        plain = bytearray()
        while piece := self.sslobject.read(RECORD):
            plain += piece
        assert not self.incoming.pending, "nothing comes behind close_notify"
        return bytes(plain)


def contexts(
    authority: trustme.CA, version: ssl.TLSVersion
) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.issue_cert("localhost").configure_cert(ours)
    authority.configure_trust(theirs)
    ours.minimum_version = ours.maximum_version = version
    return ours, theirs


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(params=VERSIONS, ids=lambda version: version.name)
def client(request: pytest.FixtureRequest, authority: trustme.CA) -> Client:
    """Give a connection over each version of TLS."""
    connection = Client(authority, request.param)
    connection.shake_hands()
    return connection


# Pipelines, each with what decodes it


Pipeline = tuple[Filter, "Callable[[bytes], bytes]"]


def pipelines() -> dict[str, Callable[[trustme.CA], Pipeline]]:
    def compressor(name: str, _: trustme.CA) -> Pipeline:
        make, program = COMPRESSORS[name]
        return Filter(make()), lambda raw: run(*program, stdin=raw)

    def identity(_: trustme.CA) -> Pipeline:
        return Filter(Identity()), bytes

    def swallowing(_: trustme.CA) -> Pipeline:
        return Filter(Swallowing(), Filter(Identity())), bytes

    def chunked(_: trustme.CA) -> Pipeline:
        return Filter(Identity(), Filter(Chunked())), unchunk

    def tls(version: ssl.TLSVersion, ca: trustme.CA) -> Pipeline:
        client = Client(ca, version, high_water=100_000)
        client.shake_hands()
        return client.out, client.read

    def three(version: ssl.TLSVersion, ca: trustme.CA) -> Pipeline:
        client = Client(ca, version, high_water=1000)
        client.shake_hands()
        body = Filter(Chunked(), client.out, high_water=5000)
        return (
            Filter(zlib.compressobj(1, wbits=31), body, high_water=3000),
            lambda raw: gzip.decompress(unchunk(client.read(raw))),
        )

    def to_callback(_: trustme.CA) -> Pipeline:
        return Filter(zlib.compressobj(wbits=31), Scripted.send), gzip.decompress

    return {
        **{name: partial(compressor, name) for name in COMPRESSORS},
        "identity": identity,
        "swallowing": swallowing,
        "chunked": chunked,
        "callback": to_callback,
        **{f"TLS {version.name}": partial(tls, version) for version in VERSIONS},
        **{f"gzip, chunked, {version.name}": partial(three, version) for version in VERSIONS},
    }


PIPELINES = pipelines()


@pytest.mark.parametrize("name", PIPELINES)
@pytest.mark.parametrize("drip", DRIPS)
def test_again_at_every_point(name: str, drip: int, authority: trustme.CA) -> None:
    """Whatever a socket takes before each EAGAIN, what arrives decodes to what was sent."""
    body = BODY if drip > 100 else BODY[-2000 - 7 * drip :]
    out, decode = PIPELINES[name](authority)
    with Dripping(drip) as sock:
        send(sock, filled(body[:7], body[7:90], body[90:]), out)
        assert decode(bytes(sock.taken)) == body


@pytest.mark.parametrize("name", COMPRESSORS)
def test_compressors(name: str, sock: Scripted) -> None:
    """The compressors' own programs find nothing wrong with the end of a stream."""
    make, (program, _) = COMPRESSORS[name]
    send(sock, filled(BODY), Filter(make()))
    run(program, "-t", stdin=bytes(sock.taken))


def test_file_ranges_and_buffers(tmp_path: Any, sock: Scripted) -> None:
    """What is a file range in the batch goes through a filter like any buffer."""
    (tmp_path / "file").write_bytes(BODY)
    with IOBatch() as batch:
        batch.addbuf(b"in front ")
        batch.addfile(tmp_path / "file", 1000)
        batch.addbuf(array.array("I", [1, 2, 3]))
        send(sock, batch, Filter(zlib.compressobj(wbits=31)))
    expected = b"in front " + BODY[1000:] + array.array("I", [1, 2, 3]).tobytes()
    assert gzip.decompress(sock.taken) == expected


# curl and s_client


def answer(sock: socket.socket, response: Callable[[bytes], None]) -> None:
    """Answer each request that comes, up to the end."""
    requests = b""
    while piece := sock.recv(65536):
        *complete_ones, requests = (requests + piece).split(b"\r\n\r\n")
        for request in complete_ones:
            response(request)


def wait(step: Callable[[], int], sock: socket.socket, out: Filter) -> None:
    """Step until 0, waiting for what the filter wants."""
    while code := step():
        assert code != IOB_ERROR, out.error
        if code == IOB_AGAIN:
            assert out.wants == EVENT_WRITE
            assert select.select([], [sock], [], PATIENCE)[1]


def respond(sock: socket.socket, body: bytes, next_filter: Filter | None) -> None:
    """Send a response in gzip and chunked coding; what is below stays open."""
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunked = Filter(Chunked(), next_filter)
    coded = Filter(zlib.compressobj(wbits=31), chunked)
    iob_sendall(sock, filled(head), next_filter, timeout=PATIENCE)
    iob_sendall(sock, filled(body), coded, timeout=PATIENCE)
    wait(lambda: coded.finish(sock, until=next_filter), sock, coded)


def test_curl_decodes(authority: trustme.CA) -> None:
    """Curl decodes gzip in chunked coding."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with listener.accept()[0] as sock:
                answer(sock, lambda _: respond(sock, BODY, None))

        thread = threading.Thread(target=serve)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        got = run("curl", "-sS", "--compressed", "--max-time", "20", url)
        thread.join(PATIENCE)
    assert got == BODY


class Server(threading.Thread):
    """Serves HTTPS on one connection: each response gzipped and chunked above the one TLS."""

    def __init__(self, authority: trustme.CA, version: ssl.TLSVersion) -> None:
        super().__init__()
        self.context, self.client_context = contexts(authority, version)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(PATIENCE)
        self.port = self.listener.getsockname()[1]
        self.requests: list[bytes] = []
        self.end: list[BaseException] = []

    def run(self) -> None:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        sslobject = self.context.wrap_bio(incoming, outgoing, server_side=True)
        tls = TLS(sslobject, incoming, outgoing)
        out = Filter(tls)
        with self.listener, self.listener.accept()[0] as sock:
            sock.settimeout(PATIENCE)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

            def recv(_: int) -> bytes:
                while True:
                    plain = tls.receive(sock.recv(65536))
                    wait(lambda: out.drain(sock), sock, out)
                    if plain:
                        return plain

            def response(request: bytes) -> None:
                self.requests.append(request.split()[1])
                respond(sock, body_of(self.requests[-1]), out)
                if request.startswith(b"LAST"):
                    wait(lambda: out.finish(sock), sock, out)

            try:
                answer(SimpleNamespace(recv=recv), response)  # type: ignore[arg-type]
            except OSError as exc:
                self.end.append(exc)


def body_of(path: bytes) -> bytes:
    """Return what is served: some bodies are large, none are equal, one is empty."""
    number = int(path.strip(b"/"))
    return data(number * 5000, number) if number % 9 == 0 else BODY[number : number * 20]


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)
def test_curl_keeps_the_connection(version: ssl.TLSVersion, authority: trustme.CA) -> None:
    """Curl gets 100 responses over one TLS connection, each with filters of its own."""
    server = Server(authority, version)
    server.start()
    got = run(
        *("curl", "-sSk", "--compressed", "--http1.1", "--max-time", "30"),
        f"https://127.0.0.1:{server.port}/[1-100]",
    )
    server.join(PATIENCE)
    paths = [b"/%d" % number for number in range(1, 101)]
    assert server.requests == paths
    assert got == b"".join(map(body_of, paths))


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)
def test_pipelined_requests(version: ssl.TLSVersion, authority: trustme.CA) -> None:
    """The openssl program gets 100 responses to 100 requests sent at once, and the end."""
    paths = [b"/%d" % number for number in range(100)]
    requests = b"".join(b"GET %b HTTP/1.1\r\n\r\n" % path for path in paths[:-1])
    requests += b"LAST /99 HTTP/1.1\r\n\r\n"
    server = Server(authority, version)
    server.start()
    got = run(
        *("openssl", "s_client", "-quiet", "-connect", f"127.0.0.1:{server.port}"), stdin=requests
    )
    server.join(PATIENCE)
    for path in paths:
        head, _, got = got.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK")
        body, end, got = got.partition(b"\r\n0\r\n\r\n")
        # A last chunk in the midst of compressed data would be a rare coincidence: none is here.
        assert gzip.decompress(unchunk(body + end)) == body_of(path)
    assert not got


def test_key_update_is_answered(authority: trustme.CA) -> None:
    """A key update that asks for one in return gets it, and the data behind it can be read."""
    if not shutil.which("openssl"):
        pytest.skip("openssl is missing: install it")
    server = Server(authority, ssl.TLSVersion.TLSv1_3)
    server.start()
    with subprocess.Popen(
        ["openssl", "s_client", "-msg", "-connect", f"127.0.0.1:{server.port}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        assert client.stderr is not None
        # A K at the beginning of what it reads is a command: update the keys, and ask for the same.
        client.stdin.write(b"K\n")
        client.stdin.flush()
        while client.stderr.readline() != b"KEYUPDATE\n":
            assert client.poll() is None
        client.stdin.write(b"LAST /5 HTTP/1.1\r\n\r\n")
        client.stdin.flush()
        got = client.stdout.read()  # up to the server's end
    server.join(PATIENCE)
    update = got.index(b"<<< TLS 1.3, Handshake [length 0005], KeyUpdate")
    assert update < got.index(b"HTTP/1.1 200 OK")
    assert b"<<< TLS 1.3, Alert [length 0002], warning close_notify" in got


# TLS


def test_records_share_a_system_call(authority: trustme.CA, sock: Scripted) -> None:
    """The four records of one offer go out by one call, and a long stream in few large ones."""
    client = Client(authority)
    client.shake_hands()
    assert iob_write(sock, filled(data(WRITE_LIMIT)), client.out) == WRITE_LIMIT
    assert len(sock.calls) == 1
    assert len(sock.taken) == WRITE_LIMIT + 4 * 22
    batch = filled(data(1 << 20))
    complete(sock, lambda: iob_write(sock, batch, client.out), client.out)
    complete(sock, lambda: client.out.drain(sock), client.out)
    assert len(sock.calls) <= 1 + 6
    client.incoming.write(bytes(sock.taken))
    plain = b""
    while len(plain) < WRITE_LIMIT + (1 << 20):
        plain += client.sslobject.read(1 << 20)
    assert plain == data(WRITE_LIMIT) + data(1 << 20)


def test_handshake_comes_first(authority: trustme.CA, sock: Scripted) -> None:
    """Before the handshake is done nothing is taken; the filter says its part, and reads."""
    client = Client(authority)
    batch = filled(BODY)
    assert iob_write(sock, batch, client.out) == IOB_AGAIN
    assert batch.wants == client.out.wants == EVENT_READ
    with pytest.raises(ssl.SSLWantReadError):
        client.sslobject.do_handshake()
    client.tls.receive(client.outgoing.read())
    # The client can't answer what has not reached it.
    sock.script.extend([100, again()])
    codes = [iob_write(sock, batch, client.out) for _ in range(2)]
    assert codes == [IOB_AGAIN, IOB_AGAIN]
    assert batch.wants == client.out.wants == EVENT_WRITE
    assert client.out.bytesleft
    assert iob_write(sock, batch, client.out) == IOB_AGAIN
    assert batch.wants == client.out.wants == EVENT_READ
    assert batch.bytesleft == len(BODY)
    client.incoming.write(bytes(sock.taken))
    sock.taken.clear()
    client.sslobject.do_handshake()
    client.tls.receive(client.outgoing.read())
    send(sock, batch, client.out)
    assert client.out.wants == EVENT_WRITE
    assert client.read(bytes(sock.taken)) == BODY


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)
def test_caller_drives_the_handshake(
    version: ssl.TLSVersion, authority: trustme.CA, sock: Scripted
) -> None:
    """Who uses the SSLObject and the BIOs himself needs no receive()."""
    client = Client(authority, version)
    incoming = client.tls._incoming
    for _ in range(3):
        for sslobject in (client.sslobject, client.server):
            with suppress(ssl.SSLWantReadError):
                sslobject.do_handshake()
            incoming.write(client.outgoing.read())
            complete(sock, lambda: client.out.drain(sock), client.out)
            client.incoming.write(bytes(sock.taken))
            sock.taken.clear()
    client.sslobject.write(b"a question")
    incoming.write(client.outgoing.read())
    assert client.server.read(100) == b"a question"
    send(sock, filled(b"an answer"), client.out)
    assert client.read(bytes(sock.taken)) == b"an answer"


def test_a_filter_may_be_the_client(authority: trustme.CA) -> None:
    """The side that connects begins the handshake when it first writes or drains."""
    ours, theirs = contexts(authority, ssl.TLSVersion.TLSv1_3)
    with stream_pair() as (one, other):
        seen: list[bytes] = []

        def serve() -> None:
            with ours.wrap_socket(other, server_side=True, suppress_ragged_eofs=False) as conn:
                seen.append(receive_all(conn))

        thread = threading.Thread(target=serve)
        thread.start()
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        sslobject = theirs.wrap_bio(incoming, outgoing, server_hostname="localhost")
        tls = TLS(sslobject, incoming, outgoing)
        out = Filter(tls)
        one.setblocking(False)
        with filled(BODY) as batch:
            while code := iob_write(one, batch, out) or out.finish(one):
                assert code != IOB_ERROR, out.error
                if code == IOB_AGAIN:
                    reading = out.wants == EVENT_READ
                    ready = select.select([one] * reading, [one] * (not reading), [], PATIENCE)
                    assert ready[0] or ready[1]
                    if reading:
                        assert tls.receive(one.recv(65536)) == b""
        thread.join(PATIENCE)
    assert seen == [BODY]


def test_finish_before_the_handshake(authority: trustme.CA, sock: Scripted) -> None:
    """A stream without data ends too: after the handshake, by close_notify."""
    client = Client(authority)
    with pytest.raises(ssl.SSLWantReadError):
        client.sslobject.do_handshake()
    client.tls.receive(client.outgoing.read())
    assert client.out.finish(sock) > 0  # its part of the handshake
    assert client.out.finish(sock) == IOB_AGAIN
    assert client.out.wants == EVENT_READ
    client.incoming.write(bytes(sock.taken))
    sock.taken.clear()
    client.sslobject.do_handshake()
    client.tls.receive(client.outgoing.read())
    complete(sock, lambda: client.out.finish(sock), client.out)
    assert client.read(bytes(sock.taken)) == b""


def test_unread_data_at_the_end(client: Client, sock: Scripted) -> None:
    """What a peer has sent and nobody has read does not spoil close_notify."""
    client.sslobject.write(data(50_000))
    client.tls._incoming.write(client.outgoing.read())
    send(sock, filled(BODY), client.out)
    assert client.read(bytes(sock.taken)) == BODY


def test_end_after_the_peers(client: Client, sock: Scripted) -> None:
    """After a peer's close_notify ours can still be sent; what was shut down before stays so."""
    with pytest.raises(ssl.SSLWantReadError):
        client.sslobject.unwrap()
    with pytest.raises(ssl.SSLZeroReturnError):
        client.tls.receive(client.outgoing.read())
    complete(sock, lambda: client.out.finish(sock), client.out)
    client.incoming.write(bytes(sock.taken))
    client.sslobject.unwrap()


def test_close_notify_is_an_error(client: Client, sock: Scripted) -> None:
    """After a peer's close_notify writing fails and says why; what came before it is read first."""
    client.sslobject.write(b"the last words")
    with pytest.raises(ssl.SSLWantReadError):
        client.sslobject.unwrap()
    assert client.tls.receive(client.outgoing.read()) == b"the last words"
    batch = filled(b"an answer")
    assert write_some(sock, batch, client.out) == IOB_DONE
    for _ in range(2):
        with pytest.raises(ssl.SSLZeroReturnError, match="close_notify"):
            client.tls.receive(b"")
    assert_refused(sock, client.out, ssl.SSLZeroReturnError)


def assert_refused(sock: Any, out: Filter, error: type[OSError], match: str = "") -> None:
    """Check that nothing can be written any more, and why."""
    batch = filled(b"some", b"more")
    sent = out.bytesleft
    for _ in range(2):
        assert iob_write(sock, batch, out) == IOB_ERROR
    assert type(batch.error) is error
    assert match in str(batch.error)
    assert batch.error is out.error
    assert batch.error.__traceback__ is None
    assert batch.bytesleft == 8
    assert out.drain(sock) == out.finish(sock) == IOB_ERROR
    assert out.bytesleft == sent


def test_alert_is_an_error(client: Client, sock: Scripted) -> None:
    """After a peer's alert writing fails and names the alert."""
    batch = filled(b"a record that is spoiled on its way")
    assert write_some(sock, batch, client.out) == IOB_DONE
    sock.taken[-1] ^= 1
    client.incoming.write(bytes(sock.taken))
    with pytest.raises(ssl.SSLError, match="BAD_RECORD_MAC"):
        client.sslobject.read(100)
    alert = client.outgoing.read()
    for _ in range(2):
        with pytest.raises(ssl.SSLError, match="ALERT_BAD_RECORD_MAC"):
            client.tls.receive(alert)
    assert_refused(sock, client.out, ssl.SSLError, "ALERT_BAD_RECORD_MAC")


def test_alert_ends_the_stream(client: Client, sock: Scripted) -> None:
    """After an alert there is no close_notify to be sent: finish() says what happened."""
    client.tls._ended = ssl.SSLError(1, "an alert")
    assert client.out.finish(sock) == IOB_ERROR
    assert str(client.out.error) == str(client.tls._ended)
    assert client.out.error is not client.tls._ended
    assert not sock.taken


def test_alert_behind_data(client: Client, sock: Scripted) -> None:
    """What came in front of an alert is read; then the alert raises, and nothing more is sent."""
    client.sslobject.write(b"data")
    first = client.outgoing.read()
    client.sslobject.write(b"spoiled")
    second = bytearray(client.outgoing.read())
    second[-1] ^= 1
    assert client.tls.receive(first + second) == b"data"
    with pytest.raises(ssl.SSLError, match="BAD_RECORD_MAC"):
        client.tls.receive(b"whatever")
    # Ours for the spoiled record.
    complete(sock, lambda: client.out.drain(sock), client.out)
    client.incoming.write(bytes(sock.taken))
    with pytest.raises(ssl.SSLError, match="ALERT_BAD_RECORD_MAC"):
        client.sslobject.read(100)
    assert_refused(sock, client.out, ssl.SSLError, "BAD_RECORD_MAC")


def test_end_without_close_notify(client: Client, sock: Scripted) -> None:
    """A connection that just ends is an error, as somebody may have cut it off."""
    with pytest.raises(ssl.SSLEOFError):
        client.tls.receive(b"")
    assert_refused(sock, client.out, ssl.SSLEOFError)


def test_error_of_unwrap(client: Client, sock: Scripted) -> None:
    """An error in front of close_notify is one, unlike those behind it."""
    client.tls._incoming.write_eof()
    with pytest.raises(ssl.SSLEOFError):
        client.server.read(1)
    assert client.out.finish(sock) == IOB_ERROR
    assert isinstance(client.out.error, ssl.SSLError)


def test_unwrap_that_fails(authority: trustme.CA, sock: Scripted) -> None:
    """Without close_notify an error of unwrap() is an error, and one of waiting is not."""

    def unwrap(exc: ssl.SSLError) -> int:
        def raising() -> None:
            raise exc

        fake: Any = SimpleNamespace(do_handshake=lambda: None, unwrap=raising)
        return Filter(TLS(fake, ssl.MemoryBIO(), ssl.MemoryBIO())).finish(sock)

    assert unwrap(ssl.SSLError(1, "protocol is shutdown")) == IOB_ERROR
    assert unwrap(ssl.SSLWantReadError(2, "sent before")) == IOB_DONE


# Transforms of all kinds


def test_what_waits_is_drained(sock: Scripted) -> None:
    """drain() asks for what waits by itself; Chunked has nothing, and makes no last chunk."""
    out = Filter(Chunked())
    assert iob_write(sock, filled(b"abc"), out) == 3
    assert out.drain(sock) == IOB_DONE
    assert sock.taken == b"3\r\nabc\r\n"
    transform = SimpleNamespace(compress=lambda data: bytes(data) or b"waiting", flush=bytes)
    out = Filter(transform, out)
    assert out.drain(sock) > 0
    assert sock.taken == b"3\r\nabc\r\n7\r\nwaiting\r\n"


def test_compressor_is_not_flushed_by_drain(sock: Scripted) -> None:
    """drain() is no end of anything: a compressor keeps what it keeps."""
    out = Filter(zlib.compressobj(wbits=31))
    half = len(BODY) // 2
    for part in (BODY[:half], BODY[half:]):
        batch = filled(part)
        complete(sock, partial(iob_write, sock, batch, out), out)
        complete(sock, lambda: out.drain(sock), out)
        assert len(sock.taken) < len(zlib.compress(BODY))
    complete(sock, lambda: out.finish(sock), out)
    assert gzip.decompress(sock.taken) == BODY


@pytest.mark.parametrize("drip", [61, 700, 70_000])
def test_growing_transform(drip: int) -> None:
    """A transform that makes a hundred of each byte holds no more than one piece's output."""
    body = data(3000)
    first = Filter(Growing(), Filter(Identity(), high_water=1000), high_water=5000)
    with Dripping(drip) as sock, filled(body) as batch:

        def step() -> int:
            code = iob_write(sock, batch, first, limit=300) or first.finish(sock)
            assert first.bytesleft < 5000 + 300 * 100
            assert first.then.bytesleft < 1000 + WRITE_LIMIT
            return code

        complete(sock, step, first)
        assert sock.taken == Growing().compress(body)


def test_swallowing_transform(sock: Scripted) -> None:
    """A transform that says nothing before the end loses nothing."""
    out = Filter(Swallowing())
    batch = filled(BODY)
    complete(sock, lambda: iob_write(sock, batch, out), out)
    complete(sock, lambda: out.drain(sock), out)
    assert not sock.calls
    complete(sock, lambda: out.finish(sock), out)
    assert sock.taken == BODY


def test_dropping_transform(sock: Scripted) -> None:
    """A transform that returns nothing takes everything, and no system call is made."""
    send(sock, filled(BODY), Filter(Dropping(), Filter(Identity())))
    assert not sock.calls


@pytest.mark.parametrize(
    "make",
    [bytes, bytearray, memoryview, lambda view: array.array("B", view), lambda view: view[:]],
    ids=["bytes", "bytearray", "memoryview", "array", "part of the input"],
)
def test_kinds_of_output(make: Callable[[Any], Any]) -> None:
    """Whatever buffer a transform returns is sent as it was then."""
    seen = []

    def compress(data: Any) -> Any:
        for kept in seen:
            memoryview(kept)[:] = bytes(len(kept))
        if isinstance(output := make(data), bytearray | array.array):
            seen.append(output)  # and used again
        return output

    source = bytearray(BODY)
    with Dripping(5000) as sock, IOBatch() as batch:
        batch.addbuf(source, on_release=lambda: source.__setitem__(slice(None), b""))
        send(sock, batch, Filter(SimpleNamespace(compress=compress, flush=bytes)))
        assert sock.taken == BODY
    assert not source, "nothing holds the caller's buffer"


@pytest.mark.parametrize("output", [None, "text", 5])
def test_output_that_is_none(output: Any, sock: Scripted) -> None:
    """What is no buffer is a TypeError, and not so many zero bytes."""
    out = Filter(SimpleNamespace(compress=lambda _: output, flush=bytes))
    batch = filled(BODY)
    with pytest.raises(TypeError):
        iob_write(sock, batch, out)
    assert batch.bytesleft == len(BODY)
    assert_refused(sock, out, OSError, "TypeError")


# Errors


def test_transform_that_raises(sock: Scripted) -> None:
    """What a transform raises propagates once; nothing was taken, and an error stays."""
    transform = Raising(None, zlib.error("spoiled"))
    out = Filter(Identity(), Filter(transform))
    batch = filled(b"one", bytes(JOINED), b"two")
    assert iob_write(sock, batch, out, limit=3) == 3
    assert sock.taken == b"one"
    batch = filled(b"two")
    with pytest.raises(zlib.error, match="spoiled"):
        iob_write(sock, batch, out)
    assert batch.bytesleft == 3
    assert_refused(sock, out, OSError, "spoiled")
    assert transform.calls == 2
    assert sock.taken == b"one"


JOINED = 64 * 1024


@pytest.mark.parametrize("below", [False, True])
def test_transform_that_raises_an_oserror(*, below: bool, sock: Scripted) -> None:
    """An OSError of a transform is the batch's error, and stays that of the filter."""
    error = OSError(errno.ENOSPC, "no space")
    transform = Raising(error)
    out = Filter(Identity(), Filter(transform)) if below else Filter(transform)
    batch = filled(bytes(JOINED), b"more")
    codes = [iob_write(sock, batch, out) for _ in range(3)]
    # The filter above has taken what the one below refused.
    assert codes == [JOINED if below else IOB_ERROR, IOB_ERROR, IOB_ERROR]
    assert batch.error is out.error is error
    assert_refused(sock, out, OSError, "no space")
    assert transform.calls == 1


def test_drain_that_raises(sock: Scripted) -> None:
    """An error in what waits is one of drain()."""

    def compress(_: Any) -> bytes:
        raise OSError(errno.EIO, "nothing waits")

    out = Filter(SimpleNamespace(compress=compress, flush=bytes))
    assert out.drain(sock) == IOB_ERROR
    assert_refused(sock, out, OSError, "nothing waits")


@pytest.mark.parametrize("error", [OSError(errno.EIO, "no end"), ValueError("no end")])
def test_flush_that_raises(error: Exception, sock: Scripted) -> None:
    """An error in flush() is one of finish(), as in compress()."""
    out = Filter(Identity(), Filter(Raising(end=error)))
    assert iob_write(sock, filled(b"abc"), out) == 3
    if isinstance(error, OSError):
        assert out.finish(sock) == IOB_ERROR
    else:
        with pytest.raises(ValueError, match="no end"):
            out.finish(sock)
    assert_refused(sock, out, OSError, "no end")


def test_socket_error(client: Client, sock: Scripted) -> None:
    """An error of the socket is the error of the whole pipeline, and of the batch."""
    out = Filter(Identity(), Filter(Chunked(), client.out))
    error = ConnectionResetError(errno.ECONNRESET, "reset")
    sock.script.append(error)
    batch = filled(data(WRITE_LIMIT), b"more")
    assert iob_write(sock, batch, out) == WRITE_LIMIT
    assert iob_write(sock, batch, out) == IOB_ERROR
    assert batch.error is out.error is client.out.error is error
    assert_refused(sock, out, ConnectionResetError)
    assert len(sock.calls) == 1


def test_callback_that_raises(sock: Scripted) -> None:
    """After an exception of the callback at the end nothing is sent a second time."""
    calls = []

    def callback(_: Any, view: memoryview) -> int:
        calls.append(bytes(view))
        raise KeyError("a bug")

    out = Filter(Identity(), Filter(Identity(), callback))
    batch = filled(b"abc")
    with pytest.raises(KeyError):
        iob_write(sock, batch, out)
    assert_refused(sock, out, OSError, "a bug")
    assert calls == [b"abc"]


def test_callback_that_raises_in_drain() -> None:
    """When nothing is taken by the way, such an exception leaves everything as it was."""
    script: deque[Any] = deque([IOB_AGAIN, KeyError("a bug"), None, 2, 1])
    taken = bytearray()

    def callback(_: Any, view: memoryview) -> Any:
        action = script.popleft()
        if isinstance(action, Exception):
            raise action
        if action and action > 0:
            taken.extend(view[:action])
        return action

    out = Filter(Identity(), callback)
    assert iob_write(None, filled(b"abc"), out) == 3
    with pytest.raises(KeyError):
        out.drain(None)
    assert [out.drain(None) for _ in range(3)] == [IOB_AGAIN, 3, IOB_DONE]
    assert taken == b"abc"


def test_tls_socket_at_the_end(authority: trustme.CA) -> None:
    """Without a callback a TLS socket is refused, before its descriptor gets plain text."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    with (
        stream_pair() as (one, other),
        context.wrap_socket(
            one, server_hostname="localhost", do_handshake_on_connect=False
        ) as conn,
    ):
        out = Filter(Identity())
        with pytest.raises(TypeError):
            iob_write(conn, filled(b"secret"), out)
        assert not select.select([other], [], [], 0)[0]
        assert_refused(conn, out, OSError, "TypeError")


# Pressure and fairness


def test_high_water() -> None:
    """A filter that holds as much as it may takes nothing, and tries the socket first."""
    transform = Counting()
    out = Filter(transform, high_water=100_000)
    with Scripted(*[again()] * 4, 1, again(), 70_000, again()) as sock:
        batch = filled(data(1 << 20))
        codes = [iob_write(sock, batch, out) for _ in range(2)]
        assert codes == [WRITE_LIMIT] * 2
        codes = [iob_write(sock, batch, out) for _ in range(3)]
        assert codes == [IOB_AGAIN] * 3
        assert out.bytesleft == 2 * WRITE_LIMIT - 1
        assert transform.take() == 2 * WRITE_LIMIT
        asked = len(sock.calls)
        sock.script = deque([70_000, again()])
        # It has room now, and the socket is known to be full: one call, not two.
        assert iob_write(sock, batch, out) == WRITE_LIMIT
        assert len(sock.calls) == asked + 1
        send(sock, batch, out)
        assert sock.taken == data(1 << 20)


def test_full_filter_is_asked_for_nothing() -> None:
    """drain() of a full filter does not make its transform add to what is held."""
    out = Filter(SimpleNamespace(compress=lambda data: bytes(data) or b"more", flush=bytes))
    out._batch.addbuf(data(256 * 1024))
    with Scripted(again(), 100, again()) as sock:
        assert [out.drain(sock) for _ in range(2)] == [IOB_AGAIN, 100]
        assert out.bytesleft == 256 * 1024 - 100
        assert out.drain(sock) == IOB_AGAIN
        assert out.bytesleft == 256 * 1024 - 100 + 4


def test_transform_that_has_to_read_before_it_drains(sock: Scripted) -> None:
    """When what waits can't be had before something is read, drain() says so, and not 0."""
    script: deque[Any] = deque([ssl.SSLWantReadError(), ssl.SSLWantReadError(), b"waited"])

    def compress(_: Any) -> bytes:
        step = script.popleft() if script else b""
        if isinstance(step, bytes):
            return step
        raise step

    out = Filter(SimpleNamespace(compress=compress, flush=bytes), below := Filter(Identity()))
    below._batch.addbuf(b"held ")
    assert out.drain(sock) == 5
    assert out.drain(sock) == IOB_AGAIN
    assert out.wants == EVENT_READ
    complete(sock, lambda: out.drain(sock), out)
    assert out.wants == EVENT_WRITE
    assert sock.taken == b"held waited"


def test_nothing_is_kept_from_the_next_filter(sock: Scripted) -> None:
    """Only in front of the socket output is collected; from filter to filter it goes at once."""
    below = Counting()
    out = Filter(Identity(), Filter(below))
    batch = filled(data(1 << 20))
    for _ in range(3):
        assert iob_write(sock, batch, out) == WRITE_LIMIT
        assert below.take() == WRITE_LIMIT
        assert not out.bytesleft


def test_high_water_is_checked() -> None:
    """A filter that could never take anything is refused."""
    assert Filter(Identity(), high_water=1).bytesleft == 0
    with pytest.raises(ValueError):
        Filter(Identity(), high_water=0)


def test_fairness() -> None:
    """One call gives at most 64 KiB to each transform, whatever is held and grows."""
    transforms = [Counting(), Counting(), Counting()]
    out = None
    for transform in transforms:
        out = Filter(transform, out)
    assert out is not None
    top = Filter(Chunked(), out)
    with Dripping(100_003) as sock, filled(data(2_000_000)) as batch:

        def step() -> int:
            code = iob_write(sock, batch, top, limit=65536) or top.finish(sock)
            assert all(transform.take() <= 65536 for transform in transforms)
            return code

        complete(sock, step, top)
        assert unchunk(bytes(sock.taken)) == data(2_000_000)


def test_fairness_below_one_that_grows(sock: Scripted) -> None:
    """Where much is held and goes on well, one call moves 64 KiB, and then the others come."""
    below = Counting()
    out = Filter(Growing(), Filter(below), high_water=1000)
    batch = filled(data(4000))
    assert iob_write(sock, batch, out) == 4000
    assert below.take() == WRITE_LIMIT
    batch = filled(data(3000, 1))
    assert iob_write(sock, batch, out) == IOB_AGAIN
    assert batch.wants == EVENT_WRITE
    assert below.take() == WRITE_LIMIT
    while batch:
        assert iob_write(sock, batch, out) != IOB_ERROR
        assert below.take() <= WRITE_LIMIT
    complete(sock, lambda: out.finish(sock), out)
    assert sock.taken == Growing().compress(data(4000) + data(3000, 1))


def test_fairness_to_the_callback() -> None:
    """What was grown goes on in steps of 64 KiB too, also where a callback takes less at once."""
    sizes: list[int] = []

    def callback(_: Any, view: memoryview) -> int:
        sizes.append(min(len(view), 40_000))
        return sizes[-1]

    out = Filter(Growing(), callback)
    batch = filled(data(5000))
    while code := iob_write(None, batch, out) or out.finish(None):
        assert code > 0
        assert sum(sizes) <= WRITE_LIMIT
        sizes.clear()


def test_fairness_at_the_end(sock: Scripted) -> None:
    """What a transform kept up to its end goes on in steps of 64 KiB."""
    below = Counting()
    out = Filter(Swallowing(), Filter(below))
    batch = filled(BODY)
    complete(sock, lambda: iob_write(sock, batch, out), out)

    def step() -> int:
        code = out.finish(sock)
        assert below.take() <= WRITE_LIMIT
        return code

    complete(sock, step, out)
    assert sock.taken == BODY


def test_pressure_reaches_the_top(client: Client) -> None:
    """When the socket is full, every filter fills, and then the first one says "again"."""
    client.out._high_water = 50_000
    middle = Filter(Chunked(), client.out, high_water=30_000)
    top = Filter(Identity(), middle, high_water=20_000)
    with Scripted(*[again()] * 1000) as sock:
        batch = filled(BODY)
        assert write_some(sock, batch, top) == IOB_AGAIN
        assert batch.wants == top.wants == EVENT_WRITE
        assert [each.bytesleft > 0 for each in (top, middle, client.out)] == [True] * 3
        assert top.drain(sock) == top.finish(sock) == IOB_AGAIN
        assert batch
        sock.script.clear()
        send(sock, batch, top)
        assert unchunk(client.read(bytes(sock.taken))) == BODY


def test_wants_of_the_top(authority: trustme.CA, sock: Scripted) -> None:
    """A filter above one that has to read wants the same."""
    client = Client(authority)
    out = Filter(Identity(), client.out, high_water=1000)
    batch = filled(data(5000))
    assert write_some(sock, batch, out) == IOB_DONE
    assert out.drain(sock) == IOB_AGAIN
    assert out.wants == EVENT_READ
    batch = filled(b"more")
    assert iob_write(sock, batch, out) == IOB_AGAIN
    assert batch.wants == EVENT_READ


def test_flush_waits_for_room() -> None:
    """A full filter is not made to hold its transform's last output too."""
    transform = Swallowing()
    out = Filter(transform, high_water=1000)
    out._batch.addbuf(data(1000))
    transform.kept += b"the end"
    with Scripted(again(), 999, again()) as sock:
        assert out.finish(sock) == IOB_AGAIN
        assert out.bytesleft == 1000
        assert out.drain(sock) == 999
        assert out.finish(sock) == IOB_AGAIN
        assert out.bytesleft == 1 + 7
        complete(sock, lambda: out.finish(sock), out)
        assert sock.taken == data(1000) + b"the end"


def test_end_takes_one_system_call(client: Client, sock: Scripted) -> None:
    """The last bytes of three filters, and close_notify, go out together."""
    out = Filter(zlib.compressobj(wbits=31), Filter(Chunked(), client.out))
    assert iob_write(sock, filled(b"short"), out) == 5
    asked = len(sock.calls)
    complete(sock, lambda: out.finish(sock), out)
    assert len(sock.calls) == asked + 1
    assert gzip.decompress(unchunk(client.read(bytes(sock.taken)))) == b"short"


# The end


def test_finish_twice(client: Client, sock: Scripted) -> None:
    """Once finished, finish() and drain() do nothing more, and say 0."""
    out = Filter(zlib.compressobj(wbits=31), Filter(Chunked(), client.out))
    send(sock, filled(BODY), out)
    asked = len(sock.calls)
    assert [out.finish(sock), out.drain(sock), out.finish(sock)] == [IOB_DONE] * 3
    assert len(sock.calls) == asked


def test_write_after_finish(sock: Scripted) -> None:
    """What is written after finish() is refused, and the filter has no error of its own."""
    out = Filter(Identity(), Filter(Chunked()))
    send(sock, filled(b"abc"), out)
    batch = filled(b"more")
    assert iob_write(sock, batch, out) == IOB_ERROR
    assert isinstance(batch.error, BrokenPipeError)
    assert "finished" in str(batch.error)
    assert (batch.bytesleft, out.error, out.finish(sock)) == (4, None, IOB_DONE)
    upper = Filter(Identity(), out)
    assert iob_write(sock, batch2 := filled(b"more"), upper) == 4
    assert upper.drain(sock) == IOB_ERROR
    assert isinstance(upper.error, BrokenPipeError)
    assert not batch2


def test_write_after_finish_when_full() -> None:
    """A finished filter that still holds much says so too, and not "again"."""
    out = Filter(Identity(), high_water=1)
    with Scripted(again(), again(), again(), again()) as sock:
        assert iob_write(sock, filled(b"abc"), out) == 3
        out._finished = True
        batch = filled(b"more")
        assert iob_write(sock, batch, out) == IOB_ERROR
        assert isinstance(batch.error, BrokenPipeError)


def test_until(client: Client, sock: Scripted) -> None:
    """The filters above `until` end, it is drained, and what follows can use it again."""
    for number in range(3):
        out = Filter(zlib.compressobj(wbits=31), Filter(Chunked(), client.out))
        batch = filled(data(1000, number))
        complete(sock, partial(iob_write, sock, batch, out), out)
        for _ in range(2):
            complete(sock, partial(out.finish, sock, until=client.out), out)
        assert not client.out.bytesleft
        client.incoming.write(bytes(sock.taken))
        sock.taken.clear()
        plain = b""
        while not plain.endswith(b"\r\n0\r\n\r\n"):
            plain += client.sslobject.read(100)
        assert gzip.decompress(unchunk(plain)) == data(1000, number)
    complete(sock, lambda: client.out.finish(sock, until=client.out), client.out)
    assert not sock.taken
    complete(sock, lambda: out.finish(sock), out)
    assert client.read(bytes(sock.taken)) == b""


def test_until_has_to_be_there(sock: Scripted) -> None:
    """An `until` that is not in the pipeline is refused before anything ends."""
    first = Filter(Identity(), Filter(Chunked()))
    with pytest.raises(ValueError):
        first.finish(sock, until=Filter(Identity()))
    send(sock, filled(b"abc"), first)
    assert unchunk(bytes(sock.taken)) == b"abc"


def test_reset_in_the_middle() -> None:
    """reset() of the batch drops what the filter has not taken; the stream goes on."""
    out = Filter(zlib.compressobj(wbits=31), Filter(Identity(), high_water=1000), high_water=1000)
    with Dripping(500) as sock:
        batch = filled(data(300_000))
        assert write_some(sock, batch, out) == IOB_AGAIN
        taken = batch.bytessent
        assert 0 < taken < 300_000
        batch.reset()
        batch.addbuf(b"and something else")
        send(sock, batch, out)
        assert gzip.decompress(sock.taken) == data(300_000)[:taken] + b"and something else"


def test_collection_in_the_middle(unraisable: list[Any]) -> None:
    """A pipeline that is dropped goes at once, without a word, and keeps nothing of the caller."""
    source = bytearray(300_000)
    out = Filter(Identity(), Filter(Chunked()))
    gone = [weakref.ref(out), weakref.ref(out.then)]
    with stream_pair() as (sock, _), IOBatch() as batch:
        clog(sock)
        batch.addbuf(source)
        assert write_some(sock, batch, out) == IOB_DONE
        source.clear()
        gc.disable()
        try:
            del out
            assert [reference() for reference in gone] == [None, None]
        finally:
            gc.enable()
    assert not unraisable


def test_failed_filter_is_collected(client: Client, sock: Scripted) -> None:
    """No error keeps a filter or a TLS alive through its traceback."""
    with pytest.raises(ssl.SSLError):
        client.tls.receive(b"no TLS at all")
    with pytest.raises(ssl.SSLError):
        client.tls.receive(b"more")
    assert_refused(sock, client.out, ssl.SSLError)
    gone = [weakref.ref(client.out), weakref.ref(client.tls)]
    gc.disable()
    try:
        client.__dict__.clear()
        assert [reference() for reference in gone] == [None, None]
    finally:
        gc.enable()


# With the rest of the library


def test_sendall_drains(authority: trustme.CA) -> None:
    """iob_sendall waits until everything is in the socket, not just in the filter."""
    client = Client(authority)
    client.shake_hands()
    out = Filter(Chunked(), client.out)
    with stream_pair(buffers=4096) as (ours, theirs):
        seen: list[bytes] = []
        thread = threading.Thread(target=lambda: seen.append(receive_all(theirs)))
        thread.start()
        batch = filled(BODY)
        assert iob_sendall(ours, batch, out, timeout=PATIENCE) == len(BODY)
        assert out.bytesleft == client.out.bytesleft == 0
        ours.settimeout(PATIENCE)
        wait(lambda: out.finish(ours), ours, out)
        ours.shutdown(socket.SHUT_WR)
        thread.join(PATIENCE)
    assert unchunk(client.read(seen[0])) == BODY


def test_descriptor_at_the_end(tmp_path: Any) -> None:
    """The end may be a descriptor, as for iob_send."""
    with (tmp_path / "file.gz").open("wb") as file:
        out = Filter(zlib.compressobj(wbits=31))
        batch = filled(BODY)
        while code := iob_write(file.fileno(), batch, out) or out.finish(file.fileno()):
            assert code > 0
    assert gzip.decompress((tmp_path / "file.gz").read_bytes()) == BODY


def test_repr_shows_the_pipeline() -> None:
    """A repr tells what a filter holds, and where that goes."""
    out = Filter(Identity(), Filter(Chunked()))
    out._batch.addbuf(b"abc")
    assert "3 bytes left" in repr(out)
    assert "Chunked" in repr(out)


@pytest.mark.parametrize(
    "error", [BlockingIOError(errno.EAGAIN, "x", 2), TimeoutError(), ssl.SSLWantWriteError(3, "x")]
)
def test_transform_that_says_again(sock: Scripted, error: OSError) -> None:
    """A transform has nothing to wait for: what would mean "again" of a callback is its end."""
    out = Filter(Raising(error))
    batch = filled(b"data")
    for _ in range(2):
        assert iob_write(sock, batch, out) == IOB_ERROR
    assert batch.error is out.error
    assert (batch.error.errno, batch.bytesleft) == (errno.EIO, 4)


def test_memory_is_bounded_where_each_piece_grows(sock: Scripted) -> None:
    """However well the socket takes: no more is held than high_water and one piece's output."""
    out = Filter(Growing(), Filter(Identity()), high_water=1000)
    for seed in range(20):
        batch = filled(data(2000, seed))
        while batch:
            assert iob_write(sock, batch, out) != IOB_ERROR
            assert out.bytesleft < 1000 + 200_000


def test_a_full_filter_is_given_no_more_by_drain() -> None:
    """What one filter passes on at once is not more than the next one may hold."""
    ready = False
    below = Filter(Growing(), lambda _sock, view: len(view) if ready else -1, high_water=1)
    out = Filter(Identity(), below)
    for size in (1, 40_000, 40_000):
        assert iob_write(None, filled(bytes(size)), out) == size
    assert (below.bytesleft, out.bytesleft) == (100, 80_000)
    ready = True
    assert below.drain(None) == 100
    ready = False
    assert out.drain(None) == 40_000
    assert (below.bytesleft, out.bytesleft) == (100 * 40_000, 40_000)


def test_alert_goes_out_in_front_of_the_refusal(client: Client, sock: Scripted) -> None:
    """Who answers before he drains still tells the peer what was wrong with what it sent."""
    client.sslobject.write(b"data")
    first = client.outgoing.read()
    client.sslobject.write(b"spoiled")
    second = bytearray(client.outgoing.read())
    second[-1] ^= 1
    assert client.tls.receive(first + second) == b"data"
    assert iob_write(sock, filled(b"an answer"), client.out) == IOB_ERROR
    client.incoming.write(bytes(sock.taken))
    with pytest.raises(ssl.SSLError, match="ALERT_BAD_RECORD_MAC"):
        client.sslobject.read(100)


def test_transform_that_releases_its_view(sock: Scripted) -> None:
    """A transform may be done with the view it is given."""

    class Releasing(Identity):
        def compress(self, data: Any) -> bytes:
            with memoryview(data) as view:
                output = bytes(view)
            if isinstance(data, memoryview):
                data.release()
            return output

    send(sock, filled(b"data"), Filter(Releasing()))
    assert sock.taken == b"data"


def test_exception_without_a_name(sock: Scripted) -> None:
    """An exception that can't be shown is an error that stays like any other."""

    class UnspeakableError(Exception):
        def __str__(self) -> str:
            raise ValueError

        __repr__ = __str__

    out = Filter(Raising(UnspeakableError()))
    batch = filled(b"data")
    with pytest.raises(UnspeakableError):
        iob_write(sock, batch, out)
    assert iob_write(sock, batch, out) == IOB_ERROR
    assert "UnspeakableError" in str(batch.error)
