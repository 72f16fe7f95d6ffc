"""What libowfat and iobatch are observed to do, one scenario for each row of the table.

Each is called with a library, in a process of its own, so it closes nothing.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import resource
import select
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.original.libraries import AGAIN, Libowfat, is_open
from tests.support.programs import open_files
from tests.support.sockets import PATIENCE, receive, stream_pair

if TYPE_CHECKING:
    from tests.original.libraries import Library

LARGE = 5_000_000  # more than SEND_LIMIT, and more than the buffers of a connection hold
HELD: list[Any] = []  # the pairs of sockets, until the process ends


def file_of(content: bytes) -> int:
    fd = os.memfd_create("file")
    os.write(fd, content)
    return fd


def connected(
    library: Library, kind: str = "socketpair", buffers: int | None = 65536
) -> tuple[socket.socket, socket.socket]:
    """Return two sockets; the first one is non-blocking, and libowfat's event loop knows it."""
    pair = stream_pair(kind, buffers=buffers)
    HELD.append(pair)
    ours, theirs = pair.__enter__()
    ours.setblocking(False)
    library.register(ours.fileno())
    return ours, theirs


def batch_of(library: Library, *pieces: bytes | int) -> Any:
    """Return a batch: of bytes, and of files of a number of bytes."""
    batch = library.new()
    for piece in pieces:
        if isinstance(piece, int):
            library.addfile(batch, file_of(bytes(piece)), 0, piece)
        else:
            library.addbuf(batch, piece)
    return batch


def send(library: Library, out: Any, batch: Any, times: int) -> tuple[list[int], int]:
    """Return the codes of some calls, and the bytes left."""
    return [library.send(out, batch) for _ in range(times)], library.bytesleft(batch)


def short_file(library: Library, count: int) -> Any:
    """Send a range of a file of 100 bytes."""
    batch = library.new()
    library.addfile(batch, file_of(bytes(100)), 0, count)
    return send(library, connected(library)[0], batch, 3)


def full_after_some_bytes(library: Library) -> Any:
    """Files of 3000 bytes fill a socket; a second one gets these files, and then a buffer.

    Return the size of the files, a send's code, the bytes left, and the next code.
    """
    batch = batch_of(library, *[3000] * 200)
    files = library.send(connected(library)[0], batch) // 3000
    batch = batch_of(library, *[3000] * files, bytes(LARGE))
    ours, _theirs = connected(library)
    first = library.send(ours, batch)
    left = library.bytesleft(batch)
    return files * 3000, first, left, library.send(ours, batch)


def many_buffers(library: Library, count: int) -> int:
    """Send with a stack of 1 MiB."""
    resource.setrlimit(resource.RLIMIT_STACK, (1 << 20, resource.RLIM_INFINITY))
    batch = batch_of(library, *[b"x"] * count)
    return library.send(connected(library)[0], batch)


def cork(library: Library) -> Any:
    """Return the last code and the cork: after a full socket, and after a short file."""
    seen = []
    for count, exists in ((LARGE, LARGE), (1000, 100)):
        ours, _theirs = connected(library, "tcp4")
        batch = batch_of(library, b"header")
        library.addfile(batch, file_of(bytes(exists)), 0, count)
        library.addbuf(batch, b"trailer")
        code = 1
        while code > 0:
            code = library.send(ours, batch)
        seen.append((code, ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_CORK)))
    return seen


def send_one_buffer(library: Library) -> tuple[int]:
    """Return the number of this process, for strace."""
    send(library, connected(library)[0], batch_of(library, b"only"), 1)
    return (os.getpid(),)


def send_header_and_file(library: Library) -> tuple[int]:
    """Return the number of this process, for strace."""
    send(library, connected(library)[0], batch_of(library, b"header", 1000), 1)
    return (os.getpid(),)


def lost_peer(library: Library) -> Any:
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    ours, theirs = connected(library)
    theirs.close()
    return library.send(ours, batch_of(library, b"abc"))


def to_pipe_and_tty(library: Library) -> Any:
    """Send a buffer, a header with a file, and a file."""
    codes = []
    for make in (os.pipe, os.openpty):
        for pieces in ((b"buffer",), (b"header", 100), (100,)):
            _reader, writer = make()
            library.register(writer)
            codes.append(library.send(writer, batch_of(library, *pieces)))
    return codes


def sendfile_refused(library: Library, path: Path) -> Any:
    """Send to a file that is opened with O_APPEND: the kernel refuses sendfile."""
    out = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    library.register(out)
    return library.send(out, batch_of(library, 40_000))


def one_send(library: Library, path: Path) -> int:
    out = os.open(path, os.O_WRONLY | os.O_CREAT)
    library.register(out)
    return library.send(out, batch_of(library, LARGE))


def used_up_file(library: Library) -> bool:
    """Return whether a batch's first file is open after a send that ended in the second one."""
    first = file_of(b"first")
    batch = library.new()
    library.addfile_close(batch, first, 0, 5)
    library.addfile(batch, file_of(bytes(LARGE)), 0, LARGE)
    code = library.send(connected(library)[0], batch)
    assert 5 < code < LARGE
    return is_open(first)


def empty_file(library: Library) -> bool:
    """Return whether an owned, empty range keeps its file open."""
    batch, fd = library.new(), file_of(b"")
    library.addfile_close(batch, fd, 0, 0)
    library.free(batch)
    return is_open(fd)


def leaks_owned_mapping(library: Libowfat, nbytes: int) -> bool:
    """Give a mapping of one page to a batch; return whether it is there after the batch's end."""
    mapping = ctypes.CDLL(None).mmap
    mapping.restype = ctypes.c_void_p
    mapping.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    fd = os.memfd_create("owned")
    os.truncate(fd, mmap.PAGESIZE)
    address = mapping(None, mmap.PAGESIZE, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
    batch = library.new()
    assert library.library.iob_addbuf_munmap(batch, address, nbytes) == 1
    library.free(batch)
    return "memfd:owned" in Path("/proc/self/maps").read_text()


def three_halves(library: Library) -> Any:
    """Add more bytes than a batch can have; return bytesleft, or the exception's name."""
    batch = library.new()
    try:
        for _ in range(3):
            library.addfile(batch, file_of(b""), 0, 2**63 - 1)
    except OverflowError:
        return "OverflowError"
    return library.bytesleft(batch)


def prefetch(library: Library) -> tuple[int, int, int]:
    """Prefetch 30000 bytes of two files; return this process and the files, for strace."""
    first, second = file_of(bytes(20_000)), file_of(bytes(20_000))
    batch = library.new()
    library.addfile(batch, first, 0, 20_000)
    library.addfile(batch, second, 0, 20_000)
    library.prefetch(batch, 30_000)
    return os.getpid(), first, second


def half_written(library: Library) -> Any:
    batch = batch_of(library, b"one half")
    return library.write(0, batch, lambda _fd, _offer: 4), library.bytesleft(batch)


def write_then_send(library: Library) -> Any:
    """Write a file, and nothing of what is after it, by a callback; then send."""
    ours, _theirs = connected(library)
    batch = batch_of(library, 3, b"the rest")
    takes = iter([3])
    first = library.write(ours, batch, lambda _fd, _offer: next(takes, AGAIN))
    return first, *send(library, ours, batch, 2)


def one_write(library: Library) -> int:
    batch = batch_of(library, *[bytes(65536)] * 3)
    return library.write(0, batch, lambda _fd, offer: len(offer))


def retried_offers(library: Library) -> list[int]:
    """Offer a file of 10000 bytes, which grows then, and offer it again; return the lengths.

    libowfat's event loop doesn't know the descriptor, so libowfat reads the file.
    """
    fd = file_of(bytes(10_000))
    batch = library.new()
    library.addfile(batch, fd, 0, 50_000)
    seen: list[int] = []

    def refuse(_fd: int, offer: bytes) -> tuple[int, int]:
        seen.append(len(offer))
        return AGAIN

    library.write(0, batch, refuse)
    os.ftruncate(fd, 50_000)
    library.write(0, batch, refuse)
    return seen


def truncated_for_callback(library: Library, exists: int, count: int) -> Any:
    """Write a range that is too long; return the code, and how many bytes and zeros were taken."""
    taken = bytearray()

    def take(_fd: int, offer: bytes) -> int:
        taken.extend(offer)
        return len(offer)

    batch = library.new()
    library.addfile(batch, file_of(b"x" * exists), 0, count)
    code = library.write(connected(library)[0], batch, take)
    return code, taken.count(b"x"), taken.count(b"\0")


def second_file(library: Library) -> bytes:
    """Refuse a file, drop it, and write another one to the same socket; return what was offered."""
    ours, _theirs = connected(library)
    batch = library.new()
    seen: list[bytes] = []

    def refuse(_fd: int, offer: bytes) -> tuple[int, int]:
        seen.append(offer)
        return AGAIN

    for name in (b"first", b"other"):
        library.addfile(batch, file_of(name), 0, 5)
        library.write(ours, batch, refuse)
        library.reset(batch)
    return seen[1]


def takes_too_much(library: Library) -> Any:
    batch = batch_of(library, b"abc", b"def")
    try:
        return library.write(0, batch, lambda _fd, offer: len(offer) + 1)
    except ValueError:
        return "ValueError"


def callback_codes(library: Library, piece: bytes | int) -> list[int]:
    """Return the codes for a callback's -1 and -3, each with a permanent errno and EAGAIN."""
    codes = []
    for result in ((-1, errno.EIO), AGAIN, (-3, errno.EIO), (-3, errno.EAGAIN)):
        ours, _theirs = connected(library)
        answers = iter([result])
        codes.append(library.write(ours, batch_of(library, piece), lambda *_: next(answers)))  # noqa: B023
    return codes


def event_loop(library: Library) -> Any:
    """Return the number of epoll descriptors after a file was added, and a send's code.

    The socket of the send was never registered.
    """
    batch = batch_of(library, 100)
    polls = sum("eventpoll" in str(file) for file in open_files(os.getpid()))
    pair = socket.socketpair()
    return polls, library.send(pair[0], batch)


def large_buffers_over_tcp(library: Library) -> bool:
    """Return whether the socket reports an error condition after all has arrived."""
    ours, theirs = connected(library, "tcp4", None)
    # libowfat asks for it with one send, and uses it from then on.
    for _ in range(2):
        batch = batch_of(library, bytes(20_000))
        while library.send(ours, batch) > 0:
            pass
    receive(theirs, 40_000)
    poll = select.poll()
    poll.register(ours, 0)
    return bool(poll.poll(PATIENCE * 1000 if isinstance(library, Libowfat) else 0))
