"""Random batches, and what happens while they are sent."""

from __future__ import annotations

import random
from itertools import accumulate
from typing import NamedTuple

from attrs import Factory, define

COPY_LIMIT, WRITE_LIMIT, PAGE, SOCKET_BUFFER, IOV_MAX = 32768, 65536, 4096, 212992, 1024
SEND_LIMIT = 2 << 20
BORDERS = (1, PAGE, 16384, COPY_LIMIT, WRITE_LIMIT, SOCKET_BUFFER)
FILE_SIZE = (5 << 20) + 1234  # it ends within a page
SOCKETS = ("socketpair", "unix", "tcp4", "tcp6")
# By whether it is TCP. With smaller ones, TCP crawls when libowfat sends by MSG_ZEROCOPY: the
# kernel counts a page for a few bytes, and the window closes.
SMALL_BUFFERS = {False: (1, 4096, 65536), True: (32768, 65536)}
# The bytes of the file; buffers are pieces of it, too. None is zero: a mapping has zeros after the
# file's end.
CONTENT = random.Random(-1).randbytes(FILE_SIZE).replace(b"\0", b"0")
TO_ASCII = bytes(ord("!") + number % 90 for number in range(256))
# More than a socket pair with small buffers holds.
MUCH = 1 << 20


class Entry(NamedTuple):
    """An entry: `offset` and `count` are those of a range of CONTENT.

    A kind is "addbuf", "adds", "addfile" or "addfile_close".
    """

    kind: str
    offset: int
    count: int

    @property
    def is_file(self) -> bool:
        return "file" in self.kind

    @property
    def piece(self) -> bytes:
        """The bytes that exist."""
        piece = CONTENT[self.offset : self.offset + self.count]
        return piece.translate(TO_ASCII) if self.kind == "adds" else piece

    @property
    def exists(self) -> int:
        """The number of its bytes that exist: a file range may go on after the end."""
        return max(min(self.count, FILE_SIZE - self.offset), 0)


@define
class Plan:
    """One batch, sent in one way.

    Attributes:
        seed: also of what the players draw, as the sizes of reads.
        way: "send", "write" with a scripted callback, "write to a socket", or "mixed": iob_send and
            iob_write in turn.
        kind: of the socket, or "pipe".
        buffers: the sizes of the socket's buffers; None: the default.
        entries: of the batch.
        dropped: entries that are added first, and dropped by a reset.
        prefetch: how many bytes are prefetched at first; None: none.
        resets: whether the batch is reset after the first -1, and `added` is added then, or never.
        added_at: the step before which `added` is added otherwise.
        added: more entries.
        peer_ends: how the peer ends: "close", "shutdown" or "reset" (TCP); None: it reads all.
        ends_after: the number of bytes that it reads before; -1: it reads none, and ends before
            the first step.
        stops: positions in the stream where the callback reports a full socket a few times.
        fails_at: the position where the callback fails; None: nowhere.

    """

    seed: int
    way: str = "send"
    kind: str = "socketpair"
    buffers: int | None = None
    entries: list[Entry] = Factory(list)
    dropped: list[Entry] = Factory(list)
    prefetch: int | None = None
    resets: bool = False
    added_at: int = 1
    added: list[Entry] = Factory(list)
    peer_ends: str | None = None
    ends_after: int = 0
    stops: list[int] = Factory(list)
    fails_at: int | None = None

    @property
    def all_entries(self) -> list[Entry]:
        return self.entries + self.added

    @property
    def total(self) -> int:
        return sum(entry.count for entry in self.all_entries)

    def expected(self, sent_before_reset: int | None) -> bytes:
        """Return the stream, up to the first byte that doesn't exist."""
        if self.resets and sent_before_reset is None:
            return stream_of(self.entries)
        if self.resets:
            return stream_of(self.entries)[:sent_before_reset] + stream_of(self.added)
        return stream_of(self.all_entries)

    @property
    def truncated(self) -> bool:
        return any(entry.exists < entry.count for entry in self.all_entries)

    @property
    def boundaries(self) -> list[int]:
        """The positions in the stream where entries end."""
        return list(accumulate(entry.count for entry in self.all_entries))


def stream_of(entries: list[Entry]) -> bytes:
    stream = bytearray()
    for entry in entries:
        stream += entry.piece
        if entry.exists < entry.count:
            break
    return bytes(stream)


class Draw(random.Random):
    """The choices of a plan."""

    def chance(self, percent: int) -> bool:
        return self.random() * 100 < percent

    def size(self) -> int:
        kind = self.randrange(20)
        if kind < 9:
            return self.randrange(100)
        if kind < 13:
            return self.randrange(5000)
        if kind < 18:
            return max(self.choice(BORDERS) + self.randrange(-2, 3), 0)
        return self.randrange(300_000)

    def entry(self) -> Entry:
        kind = self.choice(("addbuf", "addbuf", "adds", "addfile", "addfile_close"))
        count = self.randrange(60) if kind == "adds" else self.size()
        offset = self.randrange(FILE_SIZE - count)
        if self.chance(30):
            border = self.choice((0, PAGE, offset // PAGE * PAGE, FILE_SIZE - count))
            offset = min(max(border + self.randrange(-1, 2), 0), FILE_SIZE - count)
        return Entry(kind, offset, count)

    def entries(self) -> list[Entry]:
        if self.chance(4):
            return self.run_of_buffers()
        return [self.entry() for _ in range(self.choice((0, 1, 1, 2, 3, 3, 4, 6, 10)))]

    def run_of_buffers(self) -> list[Entry]:
        """Return about as many buffers as one system call takes, perhaps around a file range."""
        count = IOV_MAX + self.choice((-1, 0, 1, 2, IOV_MAX))
        run = [Entry("addbuf", self.randrange(1000), self.randrange(1, 4)) for _ in range(count)]
        if self.chance(50):
            run.insert(self.randrange(count), self.range_of(self.size()))
        return run

    def range_of(self, count: int) -> Entry:
        return Entry("addfile", self.randrange(FILE_SIZE - count), count)


def plan(seed: int) -> Plan:
    """Return the plan with this number."""
    draw = Draw(seed)
    made = Plan(seed, draw.choice(("send", "send", "send", "write", "write to a socket", "mixed")))
    made.kind = draw.choice(SOCKETS)
    made.buffers = draw.choice((None, *SMALL_BUFFERS["tcp" in made.kind]))
    made.entries = draw.entries()
    if draw.chance(10):
        made.dropped = draw.entries()
    if draw.chance(15):
        made.prefetch = draw.choice((0, 1, PAGE, 100_000, 1 << 40))
    if draw.chance(30):
        made.added, made.added_at = draw.entries(), draw.randrange(4)
    if draw.chance(8):
        end = draw.choice(made.entries or [draw.entry()])
        over = max(draw.size(), 1)
        made.entries.append(Entry("addfile", FILE_SIZE - end.count, end.count + over))
        made.entries += draw.entries()
    if made.way == "send":
        if draw.chance(8):
            made.kind, made.buffers = "pipe", None
        elif draw.chance(20) and not made.truncated:
            draw_end(draw, made)
        elif draw.chance(3):
            made.entries.append(draw.range_of(SEND_LIMIT + draw.randrange(-1, 2)))
    elif made.way == "write":
        draw_stops(draw, made)
    if draw.chance(25) and made.way != "mixed" and made.kind != "pipe" and not made.peer_ends:
        long = max(len(made.entries), len(made.added)) >= IOV_MAX
        made.resets = not made.truncated and not long
    return made


def draw_end(draw: Draw, made: Plan) -> None:
    """Have the peer end before all is read, at a point that both libraries reach."""
    # A TCP peer that shuts down with bytes unread leaves the connection as it is.
    is_tcp = "tcp" in made.kind
    made.peer_ends = draw.choice(("close", "reset" if is_tcp else "shutdown"))
    made.buffers = draw.choice(SMALL_BUFFERS[is_tcp])
    made.ends_after = draw.choice((-1, 0, draw.randrange(1, 50_000)))
    made.entries.append(draw.range_of(MUCH))


def draw_stops(draw: Draw, made: Plan) -> None:
    """Have the callback say "again" at some positions, and perhaps fail at one."""
    total = made.total
    candidates = [*made.boundaries, total // 2, *(draw.randrange(total + 1) for _ in range(4))]
    made.stops = sorted(set(draw.sample(candidates, draw.randrange(5))))
    if made.way == "write" and draw.chance(10):
        made.fails_at = draw.choice(candidates)
