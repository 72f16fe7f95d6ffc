"""Whatever the caller does: RuntimeError or a right answer, never a crash or a lost count."""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
import threading
import warnings
import weakref
from collections import Counter
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.batches import check_invariants, data
from tests.support.fakes import SYSTEM_CALLS, library_modules, pure_copy
from tests.support.interruptions import alarm, drain, handler_at
from tests.support.programs import run_python
from tests.support.sockets import PATIENCE, clog, receive, receive_all, stream_pair

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

RECORD = 8
LARGE = 100_000  # the length of a file range that goes by sendfile


@pytest.fixture(params=["as installed", "pure"])
def lib(request: pytest.FixtureRequest) -> Any:
    """Give the library as it is installed, and in pure Python."""
    modules = library_modules() if request.param == "as installed" else pure_copy()
    return modules["iobatch"]


@contextmanager
def running(target: Callable[[], object]) -> Iterator[threading.Thread]:
    """Run a function in a thread; afterwards it must have ended."""
    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    yield thread
    thread.join(PATIENCE)
    assert not thread.is_alive()


@pytest.fixture
def quick_switches() -> Iterator[None]:
    """Have threads take turns as often as possible."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def records_of(content: bytes) -> Counter[bytes]:
    assert len(content) % RECORD == 0
    return Counter(content[at : at + RECORD] for at in range(0, len(content), RECORD))


@pytest.mark.parametrize("function", ["iob_send", "iob_sendmsg", "iob_write"])
def test_two_threads_on_one_batch_lose_and_repeat_no_byte(
    lib: Any, function: str, quick_switches: None
) -> None:
    """Each call returns as usual, or raises RuntimeError because the batch is in use."""
    batch, other = lib.IOBatch(), lib.IOBatch()
    added: list[list[bytes]] = [[], []]
    failures: list[BaseException] = []

    def send(sock: socket.socket) -> None:
        if function == "iob_write":
            lib.iob_write(sock, batch, socket.socket.send)
        else:
            getattr(lib, function)(sock, batch)

    def use(number: int, sock: socket.socket) -> None:
        try:
            for turn in range(1500):
                record = (number << 32 | turn).to_bytes(RECORD)
                kind = turn % 6
                if kind < 2:
                    batch.addbuf(record)
                elif kind == 2:
                    batch.addbufs([record])
                elif kind == 3:
                    batch.addbuf(bytearray(record))
                elif kind == 4:
                    batch.addbuf(record, on_release=lambda: None)
                added[number].append(record)
                if kind == 5:
                    added[number].pop()
                    repr(batch)
                    with suppress(RuntimeError):
                        other.extend(batch)
                    with suppress(RuntimeError):
                        batch.extend(other)
                with suppress(RuntimeError):
                    send(sock)
        except BaseException as exc:
            failures.append(exc)
            raise

    received = bytearray()
    with stream_pair() as (one, peer), running(lambda: received.extend(receive_all(peer))):
        with running(lambda: use(0, one)), running(lambda: use(1, one)):
            pass
        assert not failures
        batch.extend(other)
        check_invariants(batch)
        lib.iob_sendall(one, batch)
        one.shutdown(socket.SHUT_WR)
    assert records_of(bytes(received)) == Counter(added[0]) + Counter(added[1])


def test_reset_by_another_thread_keeps_the_counts_right(lib: Any, quick_switches: None) -> None:
    batch = lib.IOBatch()
    stop = threading.Event()

    def send(sock: socket.socket) -> None:
        for turn in range(1500):
            batch.addbuf(bytearray(3) if turn % 3 else bytes(turn))
            with suppress(RuntimeError):
                lib.iob_send(sock, batch)
        stop.set()

    def reset() -> None:
        while not stop.is_set():
            batch.addbufs([b"abc", b"defg"])
            with suppress(RuntimeError):
                batch.reset()

    with stream_pair() as (one, peer), running(lambda: receive_all(peer)):
        with running(lambda: send(one)), running(reset):
            pass
        check_invariants(batch)
        batch.reset()
        check_invariants(batch)
        one.shutdown(socket.SHUT_WR)


def test_send_that_ends_while_a_hook_of_another_thread_runs_leaves_the_batch_usable(
    lib: Any,
) -> None:
    """The hook belongs to an empty buffer, which may be added during a send."""
    batch = lib.IOBatch()
    batch.addbuf(bytearray(b"first"))
    sent = threading.Event()

    def send() -> None:
        assert lib.iob_send(one, batch) == 5
        sent.set()

    def hook() -> None:
        receive(peer, filler)
        assert sent.wait(PATIENCE)

    with stream_pair() as (one, peer):
        filler = clog(one)
        one.setblocking(True)
        with running(send):
            while not batch._core.activity:
                pass
            batch.addbuf(b"", on_release=hook)
        check_invariants(batch)
        batch.addbuf(b"last")
        assert lib.iob_send(one, batch) == 4
        assert receive(peer, 9) == b"firstlast"


@pytest.mark.parametrize("operation", ["reset", "extend", "iob_send", "iob_sendmsg", "iob_write"])
def test_send_that_another_thread_begins_at_any_point_of_a_call_repeats_nothing(
    lib: Any, operation: str
) -> None:
    """The other thread's send waits for its peer until this call has ended."""
    for point in range(1, 100):
        batch = lib.IOBatch()
        batch.addbuf(b"first")
        other = lib.IOBatch()
        threads: list[threading.Thread] = []

        def send(batch: Any = batch) -> None:
            with suppress(RuntimeError):
                lib.iob_send(one, batch)

        def begin(batch: Any = batch, threads: list[threading.Thread] = threads) -> None:
            threads.append(threading.Thread(target=send))
            threads[0].start()
            while threads[0].is_alive() and not batch._core.activity:
                pass

        with stream_pair() as (one, peer), stream_pair() as (two, second_peer):
            filler = clog(one)
            one.setblocking(True)
            with handler_at(point, begin) as reached, suppress(RuntimeError):
                if operation == "reset":
                    batch.reset()
                elif operation == "extend":
                    other.extend(batch)
                elif operation == "iob_write":
                    lib.iob_write(two, batch, socket.socket.send)
                else:
                    getattr(lib, operation)(two, batch)
            receive(peer, filler)
            for thread in threads:
                thread.join(PATIENCE)
                assert not thread.is_alive()
            check_invariants(batch)
            check_invariants(other)
            one.close()
            two.close()
            received = len(receive_all(peer)) + len(receive_all(second_peer))
        if operation != "reset":
            assert received + batch.bytesleft + other.bytesleft == 5
        assert received <= 5
        if not reached:
            break
    assert point < 99


def misuse(lib: Any, batch: Any, sock: socket.socket) -> None:
    """Do what is refused during a call on the batch."""
    for call in (
        batch.reset,
        lambda: lib.IOBatch().extend(batch),
        lambda: lib.iob_send(sock, batch),
        lambda: lib.iob_sendmsg(sock, batch),
        lambda: lib.iob_write(sock, batch, socket.socket.send),
    ):
        with pytest.raises(RuntimeError, match="in use"):
            call()


def test_handler_of_a_signal_finds_the_batch_in_use(lib: Any) -> None:
    """The signal arrives while the send waits for its peer, and nothing has been sent."""
    batch = lib.IOBatch()
    batch.addbuf(b"first")
    filler = 0

    def handler(_number: int, _frame: object) -> None:
        misuse(lib, batch, one)
        batch.addbuf(b"added")
        receive(peer, filler)

    with stream_pair() as (one, peer):
        filler = clog(one)
        one.setblocking(True)
        with alarm(handler):
            assert lib.iob_send(one, batch) == 5
        assert lib.iob_send(one, batch) == 5
        check_invariants(batch)
        assert receive(peer, 10) == b"firstadded"


@pytest.mark.parametrize("function", ["iob_send", "iob_write"])
def test_finalizer_of_a_sent_file_finds_the_batch_in_use(
    lib: Any, function: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(data(100))
    failures: list[BaseException] = []

    class Finalized:
        def __init__(self) -> None:
            self.file = (tmp_path / "file").open("rb")

        def fileno(self) -> int:
            return self.file.fileno()

        def __del__(self) -> None:
            self.file.close()
            try:
                misuse(lib, batch, one)
                batch.addbuf(b"added")
            except BaseException as exc:  # noqa: BLE001 # the test reports it
                failures.append(exc)

    batch = lib.IOBatch()
    batch.addbuf(b"first")
    batch.addfile(Finalized(), 0, 100)
    batch.addfile(Finalized(), 0, 100)
    batch.addbuf(b"last")
    with stream_pair() as (one, peer):
        total = 0
        while batch:
            if function == "iob_send":
                total += lib.iob_send(one, batch)
            else:
                total += lib.iob_write(one, batch, socket.socket.send)
            check_invariants(batch)
        assert not failures
        one.shutdown(socket.SHUT_WR)
        received = receive_all(peer)
    assert len(received) == total == batch.bytessent
    assert received.count(b"added") == 2
    assert received.replace(b"added", b"") == b"first" + 2 * data(100) + b"last"


def test_finalizers_that_run_at_any_allocation_lose_no_entry(lib: Any) -> None:
    """The garbage collector runs them wherever an object is made."""
    batch = lib.IOBatch()
    added = 0

    class Garbage:
        def __init__(self) -> None:
            self.cycle = self

        def __del__(self) -> None:
            nonlocal added
            batch.addbuf(b"finalized")
            added += len(b"finalized")

    before = gc.get_threshold()
    try:
        with socket.socket() as sock, pytest.MonkeyPatch.context() as patch:
            take = lambda _fd, piece, _flags: len(piece) // 2 + 1  # noqa: E731
            patch.setattr(SYSTEM_CALLS, "send", take)
            patch.setattr(SYSTEM_CALLS, "sendmsg", lambda _fd, pieces, _flags: len(pieces[0]))
            patch.setattr(socket.socket, "send", take)
            patch.setattr(socket.socket, "sendmsg", lambda _sock, pieces, *_: len(pieces[0]))
            for turn in range(300):
                gc.set_threshold(1 + turn % 7)
                for _ in range(3):
                    Garbage()
                    batch.addbufs([b"12", b"345"])
                    batch.addbufs((b"12", b"", b"345"))
                    batch.addbuf(b"6789")
                    batch.addbuf(bytearray(10))
                    added += 24
                if turn % 3 == 0:
                    lib.iob_send(sock, batch)
                gc.set_threshold(0)
                check_invariants(batch)
                assert batch.bytessent + batch.bytesleft == added
    finally:
        gc.set_threshold(*before)
        gc.collect()


@contextmanager
def untraced() -> Iterator[None]:
    """Stop a tracer, such as coverage's, which makes objects between any two lines."""
    trace = sys.gettrace()
    sys.settrace(None)
    try:
        yield
    finally:
        sys.settrace(trace)


@contextmanager
def finalizer(act: Callable[[], object]) -> Iterator[None]:
    """Have the collector call a function at the first allocation in the block."""

    class Garbage:
        def __init__(self) -> None:
            self.cycle = self

        def __del__(self) -> None:
            act()

    gc.collect()
    before = gc.get_threshold()
    lists: list[Any] = [[] for _ in range(200)]  # the interpreter keeps some unused lists ready
    Garbage()
    with untraced():
        gc.set_threshold(1, 1, 1)
        try:
            yield
        finally:
            gc.set_threshold(*before)
    gc.collect()
    lists.clear()


@pytest.mark.parametrize("count", [3, 100])
def test_entry_that_a_finalizer_adds_while_the_queue_is_emptied_is_kept(
    lib: Any, count: int
) -> None:
    for empty in ("reset", "send"):
        batch = lib.IOBatch()
        batch.addbufs([b"x"] * count)
        with stream_pair() as (one, _), finalizer(partial(batch.addbuf, b"added")):
            if empty == "reset":
                batch.reset()
            else:
                lib.iob_send(one, batch)
        check_invariants(batch)
        assert batch.bytesleft in {0, 5, 5 + count}


def test_reset_by_a_finalizer_during_repr_causes_no_crash(lib: Any) -> None:
    for count in range(1, 200, 7):
        batch = lib.IOBatch()
        batch.addbufs([bytes([count]) * (100 + i) for i in range(count)])
        with finalizer(batch.reset):
            assert "IOBatch" in repr(batch)
        check_invariants(batch)


@pytest.mark.parametrize("act", ["send", "prepend", "reset", "extend"])
def test_bytes_that_are_being_dropped_are_never_sent(lib: Any, act: str, tmp_path: Path) -> None:
    """A finalizer of a file runs while reset() drops the batch."""
    (tmp_path / "file").write_bytes(b"dropped")
    other = lib.IOBatch()

    class Finalized:
        def __init__(self) -> None:
            self.file = (tmp_path / "file").open("rb")

        def fileno(self) -> int:
            return self.file.fileno()

        def __del__(self) -> None:
            self.file.close()
            with suppress(RuntimeError):
                if act == "prepend":
                    batch.prepend(b"added")
                else:
                    batch.addbuf(b"added")
                if act == "send":
                    lib.iob_send(one, batch)
                elif act == "reset":
                    batch.reset()
                elif act == "extend":
                    other.extend(batch)

    with stream_pair() as (one, peer), (tmp_path / "file").open("rb") as file:
        batch = lib.IOBatch()
        batch.addfile(Finalized(), 0, 7)
        batch.addfile(file.fileno(), 0, 7)
        batch.addbuf(b"dropped")
        batch.reset()
        for each in batch, other:
            check_invariants(each)
            while lib.iob_send(one, each) > 0:
                pass
        one.shutdown(socket.SHUT_WR)
        assert b"dropped" not in receive_all(peer)


OWN_METHODS = """
import socket

class Own(socket.socket):
    def send(self, data, flags=0):
        print("its own send")
        return super().send(data, flags)

socket.socket = Own  # as gevent.monkey.patch_all() does
from iobatch import IOBatch, iob_send
one, peer = socket.socketpair()
batch = IOBatch()
batch.addbuf(b"abc")
print(iob_send(one, batch))
"""


def test_socket_class_with_methods_of_its_own_is_used_through_them() -> None:
    result = run_python(OWN_METHODS)
    assert (result.stdout, result.stderr) == ("its own send\n3\n", "")


def test_socket_that_a_hook_closes_is_not_confused_with_a_new_descriptor(
    lib: Any, tmp_path: Path
) -> None:
    """The number of the closed socket is free, and the next file that is opened gets it."""
    (tmp_path / "source").write_bytes(data(LARGE))
    opened: list[int] = []

    def close() -> None:
        number = one.fileno()
        one.close()
        opened.append(os.open(tmp_path / "other", os.O_RDWR | os.O_CREAT))
        assert opened == [number]

    batch = lib.IOBatch()
    with stream_pair() as (one, peer), (tmp_path / "source").open("rb") as source:
        batch.addbuf(b"first", on_release=close)
        batch.addfile(source, 0, LARGE)
        assert lib.iob_send(one, batch) == 5
        assert lib.iob_send(one, batch) == lib.IOB_ERROR
        assert receive_all(peer) == b"first"
        os.close(opened[0])
    assert not (tmp_path / "other").read_bytes()
    batch.reset()


def test_forked_child_has_a_batch_of_its_own(lib: Any) -> None:
    """It can use the batch, except while the parent's thread was sending it at the fork."""
    batch = lib.IOBatch()
    content = data(3_000_000)
    batch.addbuf(content)
    with stream_pair() as (one, peer), running(lambda: lib.iob_sendall(one, batch)):
        first = peer.recv(1000)  # now a send is in progress, or another one will be
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of a fork with threads
            child = os.fork()
        if not child:
            code = 1
            try:
                with suppress(RuntimeError):
                    batch.reset()
                fresh = lib.IOBatch()
                fresh.addbuf(b"fresh")
                with socket.socketpair()[0] as sock:
                    sock.setblocking(False)
                    assert lib.iob_send(sock, fresh) in {5, lib.IOB_ERROR}
                repr(batch)
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        received = bytearray(first)
        while len(received) < len(content):
            received += peer.recv(1 << 20)
    assert received == content


def test_buffers_are_held_while_a_send_waits(lib: Any) -> None:
    """Not even the batch's own view can be released."""
    batch = lib.IOBatch()
    buffer = bytearray(data(3_000_000))
    batch.addbuf(buffer)
    batch.addbuf(bytearray(b"last"))
    with stream_pair() as (one, peer), running(lambda: lib.iob_sendall(one, batch)):
        received = bytearray(peer.recv(1000))
        with pytest.raises(BufferError):
            buffer.append(1)
        for view in list(batch._core.queue):
            if len(view) > 4:
                with suppress(BufferError):  # between two calls it succeeds
                    view.obj.append(1)
        while len(received) < 3_000_004:
            received += peer.recv(1 << 20)
    buffer.append(1)
    assert received == buffer[:-1] + b"last"


def test_batch_in_a_cycle_with_its_hook_calls_the_callback_of_a_weak_reference(lib: Any) -> None:
    collected: list[object] = []
    batch = lib.IOBatch()
    batch.addbuf(b"data", on_release=partial(repr, batch))
    batch.addfile(0, 0, 10)
    reference = weakref.ref(batch, collected.append)
    del batch
    gc.collect()
    assert collected == [reference]


DAMAGE = """
import gc, socket, sys
from contextlib import suppress
from iobatch import IOBatch, iob_send, iob_sendmsg, iob_write

sys.unraisablehook = lambda args: None
one, peer = socket.socketpair()
one.setblocking(False)
USES = [
    lambda batch: iob_send(one, batch),
    lambda batch: iob_send(one, batch, limit=3),
    lambda batch: iob_sendmsg(one, batch),
    lambda batch: iob_write(one, batch, lambda sock, view: len(view) // 2),
    lambda batch: batch.addbufs([b"more"] * 100),
    lambda batch: batch.prepend(b"more"),
    lambda batch: IOBatch().extend(batch),
    lambda batch: batch.reset(),
    repr,
]
DAMAGES = [None, 5, b"", bytes(100_000), (1, 2), (), ("a",) * 5, (0, 0, 99, 0, 0), "text"]
for use in USES:
    for damage in DAMAGES:
        for where in (0, 1, -1, "all", "cleared"):
            batch = IOBatch()
            batch.addbufs([b"some", bytearray(b"thing"), b"more"] * 10)
            queue = batch._core.queue
            for slots in [each for each in gc.get_referents(queue) if type(each) is list]:
                if where == "cleared":
                    slots.clear()
                elif where == "all":
                    slots[:] = [damage] * len(slots)
                else:
                    slots[where] = damage
            for _ in range(2):
                with suppress(Exception):
                    use(batch)
print("survived")
"""


def test_list_inside_a_batch_that_is_changed_from_outside_causes_no_crash() -> None:
    """The garbage collector's functions lead to it; any exception will do."""
    result = run_python(DAMAGE)
    assert result.stdout == "survived\n", result.stderr


def test_thread_with_a_small_stack_can_send(lib: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(data(LARGE))
    failures: list[BaseException] = []
    received: list[bytes] = []

    def send() -> None:
        try:
            with stream_pair() as (one, peer), (tmp_path / "file").open("rb") as file:
                clog(one)
                for size in (1, 100, LARGE):
                    batch = lib.IOBatch()
                    batch.addbufs([bytearray(size), bytes(size)] * 10)
                    batch.addfile(file, 0, size)
                    assert lib.iob_send(one, batch) == lib.IOB_AGAIN
                    batch.reset()
                received.append(peer.recv(1))
        except BaseException as exc:  # noqa: BLE001 # the test reports it
            failures.append(exc)

    before = threading.stack_size(128 * 1024)
    try:
        with running(send):
            pass
    finally:
        threading.stack_size(before)
    assert not failures
    assert received


def test_exit_by_a_handler_in_a_finalizer_is_reported_and_ignored(
    lib: Any, unraisable: list[BaseException | None]
) -> None:
    """As an exception of any finalizer: the process goes on."""

    def leave(_number: int, _frame: object) -> None:
        raise SystemExit

    batch = lib.IOBatch()
    batch.addbuf(b"data", on_release=lambda: signal.raise_signal(signal.SIGUSR1))
    before = signal.signal(signal.SIGUSR1, leave)
    try:
        del batch
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert [type(exc) for exc in unraisable] == [SystemExit]


def test_memory_that_runs_out_at_any_allocation_of_a_send_loses_and_repeats_no_byte(
    lib: Any, tmp_path: Path
) -> None:
    """Where the number of bytes is unknown, the batch has failed."""
    testcapi = pytest.importorskip("_testcapi", reason="install libpython3-testsuite")
    content = data(20_000)
    (tmp_path / "file").write_bytes(content)
    with stream_pair() as (one, peer), (tmp_path / "file").open("rb") as file:
        one.setblocking(False)
        peer.setblocking(False)
        for limit in (1, 7, 25, 600, 21_000):
            for allocation in range(40):
                batch = lib.IOBatch()
                batch.addbufs([b"first", b"second", bytearray(b"third")] if limit % 2 else [b"12"])
                batch.addbufs([content[:300]] * 2)
                batch.addfile(file.fileno(), 0, 20_000)
                total = batch.bytesleft
                with untraced():
                    testcapi.set_nomemory(allocation, allocation + 1)
                    try:
                        lib.iob_send(one, batch, limit=limit)
                    except MemoryError:
                        pass
                    finally:
                        testcapi.remove_mem_hooks()
                received = len(drain(peer))
                if batch.error is None:
                    assert batch.bytessent == received
                    with suppress(BlockingIOError):
                        lib.iob_sendall(one, batch, timeout=PATIENCE)
                    check_invariants(batch)
                    assert received + len(drain(peer)) == total
                batch.reset()
