"""iob_sendmsg: a batch as one message, with ancillary data."""

from __future__ import annotations

import array
import errno
import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from iobatch import (
    IOB_AGAIN,
    IOB_DONE,
    IOB_ERROR,
    IOBatch,
    TruncatedFileError,
    iob_send,
    iob_sendmsg,
)
from tests.helpers import (
    IOV_MAX,
    PATIENCE,
    Scripted,
    again,
    check_invariants,
    clog,
    data,
    is_silent,
    log_preads,
    patch_os,
    receive,
    stream_pair,
    take,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    MakeFile = Callable[[bytes], int]
    Pair = tuple[socket.socket, socket.socket]

pytestmark = pytest.mark.usefixtures("no_leaks")

MESSAGE_KINDS = ("udp", "unix datagram", "seqpacket")


@pytest.fixture(params=MESSAGE_KINDS)
def messages(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """Give two connected sockets that keep the bounds of messages."""
    if request.param == "udp":
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other,
        ):
            other.bind(("127.0.0.1", 0))
            one.connect(other.getsockname())
            yield one, other
    else:
        kind = socket.SOCK_DGRAM if request.param == "unix datagram" else socket.SOCK_SEQPACKET
        one, other = socket.socketpair(socket.AF_UNIX, kind)
        with one, other:
            yield one, other


def get_message(sock: socket.socket) -> bytes:
    sock.settimeout(PATIENCE)
    return sock.recv(1 << 20)


def test_whole_batch_is_one_message(messages: Pair, make_file: MakeFile) -> None:
    """Buffers and file ranges arrive together, as one message; then the batch is done."""
    one, other = messages
    content = data(20_000)
    fd = make_file(content)
    seen: list[str] = []
    batch = IOBatch()
    batch.addbuf(b"header", on_release=lambda: seen.append("header"))
    batch.addfile(fd, 100, 10_000)
    batch.addbuf(array.array("I", [1, 2, 3]))
    batch.addfile(fd, 0, 5)
    wanted = b"header" + content[100:10_100] + bytes(array.array("I", [1, 2, 3])) + content[:5]
    assert iob_sendmsg(one, batch) == len(wanted)
    assert get_message(other) == wanted
    assert (batch.bytesleft, batch.bytessent, seen) == (0, len(wanted), ["header"])
    assert iob_sendmsg(one, batch) == IOB_DONE
    batch.addbuf(b"next")
    assert iob_sendmsg(one, batch) == 4
    assert get_message(other) == b"next"
    assert is_silent(other)


def test_empty_batch_sends_nothing(messages: Pair) -> None:
    """An empty batch is done and no empty message is sent."""
    one, other = messages
    assert iob_sendmsg(one, IOBatch()) == IOB_DONE
    assert is_silent(other)


@pytest.mark.parametrize("kind", [bytes, bytearray])
@pytest.mark.parametrize("count", [IOV_MAX, IOV_MAX + 1, 5 * IOV_MAX])
def test_more_pieces_than_iov_max(messages: Pair, count: int, kind: type) -> None:
    """More pieces than a system call takes are joined, and are one message all the same."""
    one, other = messages
    content = data(2 * count)
    batch = IOBatch()
    for i in range(0, 2 * count, 2):
        batch.addbuf(kind(content[i : i + 2]))
    assert iob_sendmsg(one, batch) == 2 * count
    assert get_message(other) == content
    check_invariants(batch)


def test_large_message_of_files(make_file: MakeFile) -> None:
    """A message may have more bytes of files than one call of iob_send stages."""
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with one, other:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1_000_000)
        content = data(190_000)
        fd = make_file(content)
        batch = IOBatch()
        batch.addfile(fd, 0, 180_000)
        batch.addfile(fd, 180_000)
        assert iob_sendmsg(one, batch) == 190_000
        assert get_message(other) == content


def test_short_reads_are_completed(make_file: MakeFile, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a file is read in pieces, the message is whole all the same."""
    pread = os.pread
    # As a network filesystem may, whatever was asked for.
    patch_os(monkeypatch, "pread", lambda fd, size, offset: pread(fd, min(size, 700), offset))
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with one, other:
        content = data(5000)
        batch = IOBatch()
        batch.addbuf(b"header")
        batch.addfile(make_file(content))
        batch.addbuf(b"trailer")
        assert iob_sendmsg(one, batch) == 5013
        assert get_message(other) == b"header" + content + b"trailer"


def test_too_long_a_message(
    messages: Pair, make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EMSGSIZE is permanent; nothing was sent, and extend() moves all of the batch on."""
    one, other = messages
    content = data(8_000_000)
    seen: list[str] = []
    batch = IOBatch()
    batch.addbuf(b"header", on_release=lambda: seen.append("header"))
    batch.addfile(make_file(content))
    assert iob_sendmsg(one, batch) == IOB_ERROR
    assert isinstance(batch.error, OSError)
    assert batch.error.errno == errno.EMSGSIZE
    assert (batch.bytesleft, batch.bytessent, seen) == (8_000_006, 0, [])
    assert is_silent(other)
    check_invariants(batch)
    assert iob_sendmsg(one, batch) == IOB_ERROR
    salvage = IOBatch()
    salvage.extend(batch)
    assert take(salvage) == b"header" + content


def test_longer_than_any_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """What no system call takes is EMSGSIZE at once; it is not read for that."""
    reads = log_preads(monkeypatch)
    batch = IOBatch()
    batch.addfile(0, 0, 2**40)
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with one, other:
        assert iob_sendmsg(one, batch) == IOB_ERROR
    assert isinstance(batch.error, OSError)
    assert batch.error.errno == errno.EMSGSIZE
    assert (batch.bytesleft, reads) == (2**40, [])


def test_address() -> None:
    """An address says where a datagram of an unconnected socket goes."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other,
    ):
        other.bind(("127.0.0.1", 0))
        batch = IOBatch()
        batch.adds("to you")
        assert iob_sendmsg(one, batch, address=other.getsockname()) == 6
        assert get_message(other) == b"to you"
        batch.adds("by place")
        assert iob_sendmsg(one, batch, (), 0, other.getsockname()) == 8
        assert get_message(other) == b"by place"


def test_flags() -> None:
    """The caller's flags reach the system call, and MSG_NOSIGNAL with them."""
    with Scripted() as sock:
        batch = IOBatch()
        batch.addbuf(b"x")
        assert iob_sendmsg(sock, batch, flags=socket.MSG_DONTROUTE) == 1
        (call,) = sock.calls
        assert call.flags == socket.MSG_DONTROUTE | socket.MSG_NOSIGNAL


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_SEQPACKET], ids=repr)
def test_again(kind: int) -> None:
    """A full socket means again: nothing is sent, and later the whole message."""
    one, other = socket.socketpair(socket.AF_UNIX, kind)
    with one, other:
        clog(one)
        batch = IOBatch()
        batch.addbuf(data(100))
        assert iob_sendmsg(one, batch) == IOB_AGAIN
        assert (batch.bytesleft, batch.error) == (100, None)
        while not is_silent(other):
            get_message(other)
        assert iob_sendmsg(one, batch) == 100
        assert get_message(other) == data(100)


@pytest.mark.parametrize("refusal", [again(), TimeoutError("timed out")], ids=repr)
def test_scripted_again(refusal: OSError) -> None:
    """EAGAIN and a socket's own timeout mean again."""
    batch = IOBatch()
    batch.addbuf(b"hello")
    with Scripted(refusal) as sock:
        assert iob_sendmsg(sock, batch) == IOB_AGAIN
        assert iob_sendmsg(sock, batch) == 5


def test_refused_datagram() -> None:
    """A datagram nobody receives is an error as of the next one; that one is kept."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.bind(("127.0.0.1", 0))
            one.connect(other.getsockname())
        batch = IOBatch()
        batch.addbuf(b"first")
        assert iob_sendmsg(one, batch) == 5
        batch.addbuf(b"second")
        assert iob_sendmsg(one, batch) == IOB_ERROR
    assert isinstance(batch.error, ConnectionRefusedError)
    assert batch.bytesleft == 6


@pytest.mark.parametrize("header", [b"", b"header"])
def test_truncated_file(header: bytes, make_file: MakeFile) -> None:
    """A file that is too short is an error before anything is sent; the batch keeps its bytes."""
    fd = make_file(data(1000))
    batch = IOBatch()
    batch.addbuf(header)
    batch.addfile(fd)
    os.ftruncate(fd, 400)
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with one, other:
        assert iob_sendmsg(one, batch) == IOB_ERROR
        assert is_silent(other)
    error = batch.error
    assert isinstance(error, TruncatedFileError)
    assert (error.fd, error.offset, error.missing) == (fd, 400, 600)
    assert (batch.bytesleft, batch.bytessent) == (1000 + len(header), 0)
    check_invariants(batch)


def test_unreadable_file(tmp_path: Any) -> None:
    """A directory's descriptor in a message is an error before anything is sent."""
    fd = os.open(tmp_path, os.O_RDONLY)
    batch = IOBatch()
    batch.addbuf(b"header")
    batch.addfile(fd, 0, 10)
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with one, other:
        assert iob_sendmsg(one, batch) == IOB_ERROR
        assert is_silent(other)
    os.close(fd)
    assert isinstance(batch.error, IsADirectoryError)
    assert batch.bytesleft == 16


# Stream sockets


def test_stream_may_be_short(make_file: MakeFile) -> None:
    """On a stream what was not accepted stays, and iob_send takes it from there."""
    content = data(100_000)
    batch = IOBatch()
    batch.addbuf(b"header")
    batch.addfile(make_file(content))
    with Scripted(10) as sock:
        assert iob_sendmsg(sock, batch) == 10
        assert batch.bytesleft == 99_996
        while iob_send(sock, batch) > 0:
            check_invariants(batch)
        assert sock.taken == b"header" + content


def test_stream_on_a_real_socket(make_file: MakeFile) -> None:
    """A large batch on a stream socket goes out by repeated calls."""
    content = data(500_000)
    batch = IOBatch()
    for i in range(2 * IOV_MAX):
        batch.addbuf(content[i : i + 1])
    batch.addfile(make_file(content), 2 * IOV_MAX)
    received = b""
    with stream_pair() as (one, other):
        one.setblocking(False)
        for _ in range(100_000):
            nbytes = iob_sendmsg(one, batch)
            assert nbytes != IOB_ERROR
            if nbytes == IOB_DONE:
                break
            received += receive(other, max(nbytes, 0))
    assert received == content


CHILD = """
import os, socket, sys
sock = socket.socket(fileno=int(sys.argv[1]))
message, fds, flags, address = socket.recv_fds(sock, 1000, 5)
print(message.decode(), len(fds), os.pread(fds[0], 100, 0).decode())
"""


@pytest.mark.parametrize(
    "kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET], ids=repr
)
def test_descriptor_passed_to_a_child_process(make_file: MakeFile, kind: int) -> None:
    """With SCM_RIGHTS a descriptor reaches another process, beside the message."""
    fd = make_file(b"content of the file")
    one, other = socket.socketpair(socket.AF_UNIX, kind)
    with one, other:
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))
        batch = IOBatch()
        batch.adds("here it comes:")
        assert iob_sendmsg(one, batch, [rights]) == 14
        child = subprocess.run(
            [sys.executable, "-c", CHILD, str(other.fileno())],
            pass_fds=[other.fileno()],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    assert child.stderr == ""
    assert child.stdout.strip() == "here it comes: 1 content of the file"


def test_ancillary_data_goes_with_the_first_byte(make_file: MakeFile) -> None:
    """On a stream the descriptor comes with the first byte; the rest goes without it."""
    fd = make_file(b"x")
    content = data(3_000_000)
    with stream_pair() as (one, other):
        one.setblocking(False)
        batch = IOBatch()
        batch.addbuf(content)
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))
        first = iob_sendmsg(one, batch, iter([rights]))
        assert 0 < first < len(content)
        piece, fds, _flags, _address = socket.recv_fds(other, 1, 5)
        assert len(fds) == 1
        os.close(fds[0])
        received = piece + receive(other, first - 1)
        while iob_send(one, batch) != IOB_DONE:
            received += receive(other, batch.bytessent - len(received))
    assert received == content


# Refused


@pytest.mark.parametrize("bad", ["name", None, 5, object(), sys.stdout], ids=repr)
def test_no_socket(bad: Any) -> None:
    """What is no socket object is a TypeError, and nothing changes."""
    batch = IOBatch()
    for _ in range(2):
        with pytest.raises(TypeError):
            iob_sendmsg(bad, batch)
        batch.addbuf(b"hello")
    check_invariants(batch)


def test_bad_ancillary_data() -> None:
    """What socket.sendmsg refuses propagates, and the batch is as before."""
    batch = IOBatch()
    batch.addbuf(b"hello")
    with stream_pair() as (one, other):
        with pytest.raises(TypeError):
            iob_sendmsg(one, batch, [5])  # type: ignore[list-item]
        check_invariants(batch)
        assert iob_sendmsg(one, batch) == 5
        assert receive(other, 5) == b"hello"


def test_error_stays() -> None:
    """A batch that has failed is not sent."""
    batch = IOBatch()
    batch.addbuf(b"hello")
    with Scripted(OSError(errno.EIO, "scripted")) as sock:
        assert iob_send(sock, batch) == IOB_ERROR
        assert iob_sendmsg(sock, batch) == IOB_ERROR
        assert len(sock.calls) == 1


def test_a_message_too_long_for_any_buffer_is_not_read(
    make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EMSGSIZE comes without reading hundreds of megabytes first."""
    fd = make_file(b"")
    os.truncate(fd, 300 * 1024 * 1024)
    reads = log_preads(monkeypatch)
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with one, other:
        batch = IOBatch()
        batch.addfile(fd)
        assert iob_sendmsg(one, batch) == IOB_ERROR
        assert batch.error is not None
        assert batch.error.errno == errno.EMSGSIZE
        assert (batch.bytesleft, reads) == (300 * 1024 * 1024, [])
