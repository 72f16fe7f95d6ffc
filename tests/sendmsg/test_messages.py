"""Messages: a whole batch at once, on datagram and seqpacket sockets."""

from __future__ import annotations

import array
import errno
import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from iobatch import IOB_AGAIN, IOB_DONE, IOB_ERROR, IOBatch, iob_sendmsg
from tests.support.batches import IOV_MAX, check_invariants, data, take
from tests.support.fakes import Scripted, again, patch_os
from tests.support.sockets import PATIENCE, clog, is_silent

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.batches import MakeFile

    Pair = tuple[socket.socket, socket.socket]


MESSAGE_KINDS = ("udp", "unix datagram", "seqpacket")


@pytest.fixture(params=MESSAGE_KINDS)
def messages(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """Yield two connected sockets that keep message boundaries, of each kind in turn."""
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


def test_whole_batch_arrives_as_one_message(messages: Pair, make_file: MakeFile) -> None:
    """A buffer added later is another message."""
    one, other = messages
    content = data(20_000)
    fd = make_file(content)
    released: list[str] = []
    batch = IOBatch()
    batch.addbuf(b"header", on_release=lambda: released.append("header"))
    batch.addfile(fd, 100, 10_000)
    batch.addbuf(array.array("I", [1, 2, 3]))
    batch.addfile(fd, 0, 5)
    wanted = b"header" + content[100:10_100] + bytes(array.array("I", [1, 2, 3])) + content[:5]
    assert iob_sendmsg(one, batch) == len(wanted)
    assert get_message(other) == wanted
    assert (batch.bytesleft, batch.bytessent, released) == (0, len(wanted), ["header"])
    assert iob_sendmsg(one, batch) == IOB_DONE
    batch.addbuf(b"next")
    assert iob_sendmsg(one, batch) == 4
    assert get_message(other) == b"next"
    assert is_silent(other)


def test_empty_batch_sends_no_message(messages: Pair) -> None:
    one, other = messages
    assert iob_sendmsg(one, IOBatch()) == IOB_DONE
    assert is_silent(other)


@pytest.mark.parametrize("kind", [bytes, bytearray])
@pytest.mark.parametrize("count", [IOV_MAX, IOV_MAX + 1, 5 * IOV_MAX])
def test_more_buffers_than_iov_max_are_one_message(messages: Pair, count: int, kind: type) -> None:
    """The buffers are joined, since one system call takes at most IOV_MAX buffers."""
    one, other = messages
    content = data(2 * count)
    batch = IOBatch()
    for i in range(0, 2 * count, 2):
        batch.addbuf(kind(content[i : i + 2]))
    assert iob_sendmsg(one, batch) == 2 * count
    assert get_message(other) == content
    check_invariants(batch)


def test_message_may_have_more_file_bytes_than_iob_send_stages(make_file: MakeFile) -> None:
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


def test_short_reads_of_a_file_are_completed(
    make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    pread = os.pread
    # A network filesystem may read less than was requested.
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


def test_unconnected_socket_sends_to_the_address() -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other,
    ):
        other.bind(("127.0.0.1", 0))
        batch = IOBatch()
        batch.adds("by keyword")
        assert iob_sendmsg(one, batch, address=other.getsockname()) == 10
        assert get_message(other) == b"by keyword"
        batch.adds("by position")
        assert iob_sendmsg(one, batch, (), 0, other.getsockname()) == 11
        assert get_message(other) == b"by position"


def test_callers_flags_and_msg_nosignal_reach_the_system_call() -> None:
    with Scripted() as sock:
        batch = IOBatch()
        batch.addbuf(b"x")
        assert iob_sendmsg(sock, batch, flags=socket.MSG_DONTROUTE) == 1
        (call,) = sock.calls
        assert call.flags == socket.MSG_DONTROUTE | socket.MSG_NOSIGNAL


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_SEQPACKET], ids=repr)
def test_full_socket_is_again_then_takes_the_whole_message(kind: int) -> None:
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
def test_eagain_and_timeout_of_the_socket_are_again(refusal: OSError) -> None:
    batch = IOBatch()
    batch.addbuf(b"hello")
    with Scripted(refusal) as sock:
        assert iob_sendmsg(sock, batch) == IOB_AGAIN
        assert iob_sendmsg(sock, batch) == 5


CHILD = """
import os, socket, sys
sock = socket.socket(fileno=int(sys.argv[1]))
message, fds, flags, address = socket.recv_fds(sock, 1000, 5)
print(message.decode(), len(fds), os.pread(fds[0], 100, 0).decode())
"""


@pytest.mark.parametrize(
    "kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET], ids=repr
)
def test_descriptor_reaches_a_child_process_by_scm_rights(make_file: MakeFile, kind: int) -> None:
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


def test_too_long_message_is_emsgsize_and_the_batch_keeps_it(
    messages: Pair, make_file: MakeFile
) -> None:
    """No byte is sent, no hook runs, and extend() can move all of it to another batch."""
    one, other = messages
    content = data(8_000_000)
    released: list[str] = []
    batch = IOBatch()
    batch.addbuf(b"header", on_release=lambda: released.append("header"))
    batch.addfile(make_file(content))
    assert iob_sendmsg(one, batch) == IOB_ERROR
    assert isinstance(batch.error, OSError)
    assert batch.error.errno == errno.EMSGSIZE
    assert (batch.bytesleft, batch.bytessent, released) == (8_000_006, 0, [])
    assert is_silent(other)
    check_invariants(batch)
    assert iob_sendmsg(one, batch) == IOB_ERROR
    moved = IOBatch()
    moved.extend(batch)
    assert take(moved) == b"header" + content
