"""Plays a plan with a library over a socket or pipe, with a peer that reads random amounts."""

from __future__ import annotations

import os
import random
import select
import socket
import struct
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from attrs import define, field

from tests.original.libraries import AGAIN, BROKEN
from tests.original.plans import plan
from tests.support.sockets import PATIENCE, stream_pair

if TYPE_CHECKING:
    from pathlib import Path

    from tests.original.libraries import Callback, Library
    from tests.original.plans import Entry, Plan

MAX_STEPS = 20_000


def shortened(values: list[object]) -> str:
    return str(values[:30])


@define
class Result:
    """What came of a plan.

    Attributes:
        code: the last code.
        errno: the errno after a code of -3.
        left: the number of bytes left in the end.
        taken: how many bytes the peer or the callback got.
        expected: how many bytes it should get, if nothing fails but the end of a file.
        exact: whether what it got are the first bytes that it should get.
        codes: of all steps.
        befores: the number of bytes left before each step.
        lefts: the number of bytes left after each step.
        agains: for each step that returned -1, the position in the stream and the bytes left.
        differing_retries: how often an offer after "again" was not the same as before.

    """

    code: int = 0
    errno: int = 0
    left: int = 0
    taken: int = 0
    expected: int = 0
    exact: bool = True
    codes: list[int] = field(factory=list, repr=shortened)
    befores: list[int] = field(factory=list, repr=shortened)
    lefts: list[int] = field(factory=list, repr=shortened)
    agains: list[tuple[int, int]] = field(factory=list, repr=shortened)
    differing_retries: int = 0

    @property
    def accepted(self) -> int:
        """The number of bytes that all steps took from the batch.

        The sum of the codes can be less: libowfat may return -1 after some bytes.
        """
        return sum(self.befores) - sum(self.lefts)

    @property
    def missing(self) -> int:
        return self.expected - self.taken


class Player:
    """A plan that is being played."""

    def __init__(self, library: Library, made: Plan, file: Path) -> None:
        self.library = library
        self.plan = made
        self.rng = random.Random(made.seed)
        self.result = Result()
        self.stream = bytearray()
        self.refused: bytes | None = None  # an offer that the callback refused
        self.agains = dict.fromkeys(made.stops, 0)
        self.sent_before_reset: int | None = None
        self.open = True  # whether the peer still reads
        self.batch = library.new()
        self.file = os.open(file, os.O_RDONLY)
        self.path = file
        self.out: Any
        self.peer: Any
        if made.kind == "pipe":
            reader, self.out = os.pipe()
            os.set_blocking(self.out, False)
            self.peer = os.fdopen(reader, "rb", buffering=0)
        else:
            self.pair = stream_pair(made.kind, buffers=made.buffers)
            self.out, self.peer = self.pair.__enter__()
            self.out.setblocking(False)
        library.register(self.out if isinstance(self.out, int) else self.out.fileno())

    def add(self, entries: list[Entry]) -> None:
        library, batch = self.library, self.batch
        for entry in entries:
            kind, offset, count = entry
            if kind == "addbuf":
                library.addbuf(batch, entry.piece)
            elif kind == "adds":
                library.adds(batch, entry.piece.decode())
            elif kind == "addfile":
                library.addfile(batch, self.file, offset, count)
            else:
                library.addfile_close(batch, os.open(self.path, os.O_RDONLY), offset, count)

    def play(self) -> Result:
        if self.plan.dropped:
            self.add(self.plan.dropped)
            self.library.reset(self.batch)
        self.add(self.plan.entries)
        if self.plan.prefetch is not None:
            self.library.prefetch(self.batch, self.plan.prefetch)
        self.take_steps()
        self.finish()
        self.library.free(self.batch)
        return self.result

    def take_steps(self) -> None:
        result = self.result
        if self.plan.peer_ends and self.plan.ends_after < 0:
            self.end()
        added_at = -1 if self.plan.resets else self.plan.added_at
        for number in range(MAX_STEPS):
            if number == added_at:
                self.add(self.plan.added)
            result.befores.append(self.library.bytesleft(self.batch))
            code = self.step(number)
            left = self.library.bytesleft(self.batch)
            result.codes.append(code)
            result.lefts.append(left)
            more = number < added_at and self.plan.added
            if code == -3 or (code == 0 and (left or not more)):
                break
            if code == -1:
                result.agains.append((len(self.stream), left))
                if self.plan.resets and self.sent_before_reset is None:
                    self.reset()
                self.read()
        else:
            raise AssertionError("the steps have no end")
        result.code, result.left = code, left
        result.errno = self.library.errno(self.batch) if code == -3 else 0

    def reset(self) -> None:
        self.sent_before_reset = self.result.accepted
        self.refused = None
        self.library.reset(self.batch)
        self.add(self.plan.added)

    def step(self, number: int) -> int:
        way = self.plan.way
        if way == "send" or (way == "mixed" and number % 2):
            return self.library.send(self.out, self.batch)
        callback = self.send if way != "write" else self.follow_script
        return self.library.write(self.out, self.batch, self.watched(callback))

    # The callbacks

    def watched(self, callback: Callback) -> Callback:
        """Compare an offer with the one that was refused before."""

        def call(fd: int, offer: bytes) -> int | tuple[int, int]:
            if self.refused is not None:
                self.result.differing_retries += offer != self.refused
            taken = callback(fd, offer)
            self.refused = offer if taken == AGAIN else None
            return taken

        return call

    def follow_script(self, _fd: int, offer: bytes) -> int | tuple[int, int]:
        position = len(self.stream)
        if position == self.plan.fails_at:
            return BROKEN
        if self.agains.get(position, 2) < 2:
            self.agains[position] += 1
            return AGAIN
        stops = [*self.plan.stops, self.plan.fails_at or 0, position + len(offer)]
        stop = min(stop for stop in stops if stop > position)
        self.stream += offer[: stop - position]
        return min(stop - position, len(offer))

    def send(self, _fd: int, offer: bytes) -> int | tuple[int, int]:
        try:
            return self.out.send(offer[: self.rng.randrange(1, 2 * len(offer) + 1)])
        except BlockingIOError:
            return AGAIN
        except OSError:
            return BROKEN

    # The peer

    def read(self) -> None:
        """Read a random amount, which is there or comes; then end, if the plan contains an end."""
        if self.plan.way == "write" or not self.open:
            return
        if self.plan.peer_ends and len(self.stream) >= self.plan.ends_after:
            self.end()
            return
        if self.plan.kind.startswith("tcp"):
            self.clean_up()
        readable, writable, _ = select.select([self.peer], [self.out], [], PATIENCE)
        assert readable or writable, "neither side can go on"
        if readable:
            most = self.rng.choice((2000, 20_000, 1 << 20))
            if self.plan.peer_ends:
                most = min(most, max(self.plan.ends_after - len(self.stream), 1))
            self.stream += os.read(self.peer.fileno(), self.rng.randrange(1, most + 1))

    def clean_up(self) -> None:
        """Do what libowfat leaves to do.

        Its cork would hold bytes back for 200 ms or more each time, and with the notifications of
        MSG_ZEROCOPY unread, the socket counts as writable.
        """
        self.out.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)
        with suppress(BlockingIOError):
            while True:
                self.out.recvmsg(0, 100, socket.MSG_ERRQUEUE)

    def end(self) -> None:
        self.open = False
        if self.plan.peer_ends == "shutdown":
            self.peer.shutdown(socket.SHUT_RDWR)
            return
        if self.plan.peer_ends == "reset":
            linger = struct.pack("ii", 1, 0)
            self.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.peer.close()

    def finish(self) -> None:
        """Read the rest of the stream, and compare it with what is expected."""
        if self.plan.way != "write" and self.open:
            if isinstance(self.out, int):
                os.close(self.out)
            else:
                with suppress(OSError):
                    self.out.shutdown(socket.SHUT_WR)
            while piece := os.read(self.peer.fileno(), 1 << 20):
                self.stream += piece
        expected = self.plan.expected(self.sent_before_reset)
        self.result.taken = len(self.stream)
        self.result.expected = len(expected)
        self.result.exact = expected.startswith(self.stream)


def play(library: Library, seed: int, file: Path) -> Result:
    """Play the plan with this number; the file has CONTENT."""
    return Player(library, plan(seed), file).play()
