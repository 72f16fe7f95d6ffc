"""sendfile refused or failed: the range is read, or the batch fails."""

from __future__ import annotations

import errno
import os
import signal
import weakref
from typing import TYPE_CHECKING

import pytest

from iobatch import IOB_ERROR, IOBatch, iob_send
from tests.support.batches import Borrowed, data
from tests.support.drivers import pump
from tests.support.fakes import Scripted, patch_os, script_sendfile
from tests.support.send import LARGE, failing_sendfile, get_cork, make_response, send_repeatedly

if TYPE_CHECKING:
    import socket
    from pathlib import Path

    from tests.support.batches import MakeFile

    Pair = tuple[socket.socket, socket.socket]


@pytest.mark.parametrize(
    "number",
    [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EOVERFLOW],
    ids=errno.errorcode.get,
)
def test_range_that_sendfile_refuses_is_read_and_sent(
    tcp: Pair, make_file: MakeFile, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """For each range sendfile is tried once."""
    tried: list[int] = []

    def sendfile(_out: int, _fd: int, offset: int, _count: int) -> int:
        tried.append(offset)
        raise OSError(number, "scripted")

    patch_os(monkeypatch, "sendfile", sendfile)
    one, other = tcp
    one.setblocking(False)
    content = data(2 * LARGE)
    fd = make_file(content)
    batch = IOBatch()
    batch.addbuf(b"header")
    batch.addfile(fd, 0, LARGE)
    batch.addfile(fd, LARGE, LARGE)
    assert pump(iob_send, one, other, batch) == b"header" + content
    assert tried == [0, LARGE]
    assert get_cork(one) == 0


def test_range_refused_part_way_is_read_from_the_next_byte(
    tcp: Pair, make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, taken = os.sendfile, []

    def sendfile(out: int, fd: int, offset: int, count: int) -> int:
        if taken:
            raise OSError(errno.EINVAL, "scripted")
        taken.append(real(out, fd, offset, min(count, 1000)))
        return taken[0]

    patch_os(monkeypatch, "sendfile", sendfile)
    one, other = tcp
    one.setblocking(False)
    batch, wanted = make_response(make_file)
    assert pump(iob_send, one, other, batch) == wanted
    assert taken == [1000]


def test_memory_error_while_a_refused_range_is_read_does_not_fail_the_batch(
    sock: Scripted, make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number of bytes sent is known: sendfile has sent none."""

    def pread(_fd: int, _nbytes: int, _offset: int) -> bytes:
        raise MemoryError

    content = data(LARGE)
    batch = IOBatch()
    batch.addfile(make_file(content))
    with monkeypatch.context() as patch:
        patch_os(patch, "sendfile", failing_sendfile(errno.EINVAL))
        patch_os(patch, "pread", pread)
        with pytest.raises(MemoryError):
            iob_send(sock, batch)
    assert batch.error is None
    send_repeatedly(sock, batch)
    assert sock.taken == content


def test_refused_range_keeps_a_reference_to_its_file_object(
    make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the file object was collected, its descriptor would be closed."""
    patch_os(monkeypatch, "sendfile", failing_sendfile(errno.EINVAL))
    content = data(LARGE)
    file = Borrowed(make_file(content))
    alive = weakref.ref(file)
    batch = IOBatch()
    batch.addfile(file)
    del file
    with Scripted() as sock:
        iob_send(sock, batch, limit=1000)
        assert alive() is not None
        send_repeatedly(sock, batch)
        assert sock.taken == content
    assert alive() is None


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOMEM, errno.EPIPE], ids=errno.errorcode.get)
def test_other_errno_of_sendfile_is_permanent(
    tcp: Pair, make_file: MakeFile, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    patch_os(monkeypatch, "sendfile", failing_sendfile(number))
    batch = IOBatch()
    batch.addfile(make_file(data(LARGE)))
    assert iob_send(tcp[0], batch) == IOB_ERROR
    assert isinstance(batch.error, OSError)
    assert batch.error.errno == number


def test_file_opened_with_o_append_gets_the_whole_batch(
    tmp_path: Path, make_file: MakeFile
) -> None:
    """Linux refuses sendfile to a file with O_APPEND (sendfile(2)), so the range is read."""
    content = data(LARGE)
    batch = IOBatch()
    batch.addbuf(b"header")
    batch.addfile(make_file(content))
    batch.addbuf(b"trailer")
    path = tmp_path / "log"
    path.write_bytes(b"before ")
    with path.open("ab", buffering=0) as file:
        send_repeatedly(file, batch)
    assert path.read_bytes() == b"before header" + content + b"trailer"


def test_range_to_a_socket_is_read_while_sigpipe_is_at_sig_dfl(
    make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only send can suppress SIGPIPE. To a descriptor the range goes by sendfile regardless."""
    monkeypatch.setattr("iobatch._send.getsignal", lambda _number: signal.SIG_DFL)
    content = data(LARGE)
    fd = make_file(content)
    batch = IOBatch()
    batch.addbuf(b"header")
    batch.addfile(fd)
    with Scripted() as sock:
        counts = script_sendfile(monkeypatch, sock)
        send_repeatedly(sock, batch)
        assert (counts, sock.taken) == ([], b"header" + content)
        batch.addfile(fd)
        send_repeatedly(sock.fileno(), batch)
        assert counts == [LARGE]
