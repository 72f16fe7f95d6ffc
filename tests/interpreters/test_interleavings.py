"""Two calls on one batch in two threads, in every order of their parts that changes the result.

A thread can lose its turn where a signal handler can run: tests/support/interruptions.py lists the
points. The first call stops at a point; the second begins in another thread, and stops at one of
its points; the first call ends; then the second does. After each pair of points no byte is sent
twice, and none is lost except by reset(); each hook has run once; the batch can be used.
"""

from __future__ import annotations

import itertools
import socket
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Event
from typing import TYPE_CHECKING

import pytest

from iobatch import IOBatch, iob_send, iob_sendmsg, iob_write
from tests.support.batches import check_invariants
from tests.support.interruptions import drain, handler_at
from tests.support.sockets import PATIENCE, stream_pair

if TYPE_CHECKING:
    from collections.abc import Callable

    MakeFile = Callable[[bytes], int]

# The points of the second call: the first ones, at which most checks are, and some later ones.
SECOND_POINTS = (1, 3, 9, 27)


class Scene:
    """A batch and another one; the pieces that were added, and the hooks that must run."""

    def __init__(self, sock: socket.socket, file: int) -> None:
        self.sock = sock
        self.file = file
        self.batch, self.other = IOBatch(), IOBatch()
        self.pieces: list[bytes] = []
        self.hooks: Counter[int] = Counter()
        self.ran: Counter[int] = Counter()
        self.resets = 0
        self._numbers = itertools.count()
        self.batch.addbuf(self.piece())
        self.batch.addbuf(bytearray(self.piece()), on_release=self.hook())
        self.batch.addfile(file, 0, 3)
        self.batch.addbuf(self.piece(), on_release=self.hook())
        self.batch.addbuf(self.piece())
        self.other.addbuf(self.piece(), on_release=self.hook())

    def piece(self) -> bytes:
        """Return a piece that no other call has added."""
        self.pieces.append(b"<%d>" % next(self._numbers))
        return self.pieces[-1]

    def hook(self) -> Callable[[], object]:
        number = next(self._numbers)
        self.hooks[number] = 1
        return lambda: self.ran.update([number])

    def check(self, peer: socket.socket) -> None:
        """Send what is left; check what has arrived, and the hooks."""
        check_invariants(self.batch)
        check_invariants(self.other)
        for batch in (self.batch, self.other):
            while iob_send(self.sock, batch) > 0:
                pass
        received = drain(peer)
        for piece in [*self.pieces, b"ABC"]:
            count = received.count(piece)
            assert count == 1 or (count == 0 and self.resets), (piece, received)
            received = received.replace(piece, b"")
        assert received == b"" or self.resets, "a part of a piece is left"
        assert self.ran == self.hooks


def reset(scene: Scene) -> None:
    scene.resets += 1
    scene.batch.reset()


def prepend(scene: Scene) -> None:
    piece, hook = scene.piece(), scene.hook()
    try:
        scene.batch.prepend(piece, on_release=hook)
    except RuntimeError:  # refused: nothing has changed
        scene.pieces.remove(piece)
        hook()


def add(scene: Scene) -> None:
    scene.batch.addbuf(scene.piece(), on_release=scene.hook())
    scene.batch.addbuf(b"", on_release=scene.hook())


CALLS: dict[str, Callable[[Scene], object]] = {
    "iob_send": lambda scene: iob_send(scene.sock, scene.batch),
    "iob_sendmsg": lambda scene: iob_sendmsg(scene.sock, scene.batch),
    "iob_write": lambda scene: iob_write(scene.sock, scene.batch, socket.socket.send),
    "reset": reset,
    "extend": lambda scene: scene.other.extend(scene.batch),
    "prepend": prepend,
    "addbuf": add,
}


class Second:
    """The second call, in a thread of a pool."""

    def __init__(self, pool: ThreadPoolExecutor, call: Callable[[], object], point: int) -> None:
        self.reached = False
        self._pool = pool
        self._call = call
        self._point = point
        self._paused, self._resumed = Event(), Event()

    def start(self) -> None:
        """Begin the call, and return when it is at its point, or has ended."""
        self._future = self._pool.submit(self._run)
        assert self._paused.wait(PATIENCE)

    def finish(self) -> None:
        """Let the call go on to its end."""
        self._resumed.set()
        self._future.result(PATIENCE)

    def _pause(self) -> None:
        self.reached = True
        self._paused.set()
        assert self._resumed.wait(PATIENCE)

    def _run(self) -> None:
        try:
            with handler_at(self._point, self._pause), suppress(RuntimeError):
                self._call()
        finally:
            self._paused.set()


@pytest.mark.parametrize("second", CALLS)
@pytest.mark.parametrize("first", CALLS)
def test_two_calls_at_once_lose_and_repeat_nothing(
    first: str, second: str, make_file: MakeFile
) -> None:
    file = make_file(b"ABC")
    pairs = 0
    with stream_pair() as (one, peer), ThreadPoolExecutor(1) as pool:
        one.setblocking(False)
        peer.setblocking(False)
        for point in range(1, 200):
            for second_point in SECOND_POINTS:
                scene = Scene(one, file)
                other = Second(pool, lambda scene=scene: CALLS[second](scene), second_point)
                with handler_at(point, other.start) as reached, suppress(RuntimeError):
                    CALLS[first](scene)
                if reached:
                    other.finish()
                scene.check(peer)
                pairs += bool(reached)
                if not (reached and other.reached):
                    break
            if not reached:
                break
    assert not reached
    assert pairs > point
