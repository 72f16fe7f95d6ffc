"""Which results must be equal, and the departures that explain a difference."""

from __future__ import annotations

import errno
from itertools import groupby
from typing import TYPE_CHECKING

from tests.original.plans import IOV_MAX

if TYPE_CHECKING:
    from tests.original.plans import Entry, Plan
    from tests.original.play import Result

    Theirs = Result | str  # the name of the signal that ended libowfat's process

# A socket with the default buffers takes a batch of this size at once. An entry counts as more
# bytes than it has, because the kernel's memory for it is larger.
ROOM, ENTRY_OVERHEAD = 100_000, 5000
LOST_PEER = {errno.EPIPE, errno.ECONNRESET}


def check_ours(plan: Plan, ours: Result) -> str | None:
    """Return what is wrong with iobatch's result by itself, or None."""
    if not ours.exact:
        return "the stream is not what was added"
    if plan.way != "mixed" and ours.differing_retries:
        return "a retry differs"
    if sum(code for code in ours.codes if code > 0) != ours.accepted:
        return "the codes are not what left the batch"
    if plan.peer_ends and ours.code == -3 and ours.errno in LOST_PEER:
        return None
    if ours.taken != ours.accepted:
        return "what arrived is not what left the batch"
    if plan.fails_at is not None and plan.fails_at == ours.taken and ours.code == -3:
        return None
    ended = (-3, errno.EIO) if plan.truncated else (0, 0)
    complete = ours.taken == ours.expected
    return None if complete and (ours.code, ours.errno) == ended else "the end is wrong"


def difference(plan: Plan, theirs: Theirs, ours: Result) -> str | None:
    """Return how two results differ; None: they are equal."""
    if isinstance(theirs, str):
        return f"killed by {theirs}"
    if plan.peer_ends and theirs.code == ours.code == -3:
        # How much the kernel had taken depends on the system calls.
        same = {theirs.errno, ours.errno} <= LOST_PEER and theirs.taken == ours.taken
        return None if same and theirs.exact else "a lost peer"
    names = ["code", "errno", "missing", "exact"]
    if plan.fails_at is None or not plan.added:  # else one library may fail before they are added
        names.append("left")
    for name in names:
        if getattr(theirs, name) != getattr(ours, name):
            return f"{name} {getattr(theirs, name)}, ours {getattr(ours, name)}"
    if steps_correspond(plan) and (theirs.codes, theirs.lefts) != (ours.codes, ours.lefts):
        return f"steps {theirs.codes}, ours {ours.codes}"
    if plan.way == "write":
        if {at for at, _ in theirs.agains} != {at for at, _ in ours.agains}:
            return f"again at {theirs.agains}, ours at {ours.agains}"
        if not plan.added and set(theirs.agains) != set(ours.agains):
            return "bytes left after again"
    return None


def steps_correspond(plan: Plan) -> bool:
    """Return whether each call of iob_send must send all that is left."""
    size = plan.total + ENTRY_OVERHEAD * len(plan.all_entries)
    return plan.way == "send" and plan.kind != "pipe" and not plan.buffers and size < ROOM


def departure(plan: Plan, theirs: Theirs, ours: Result) -> str | None:
    """Return the row of the table of departures that explains a difference; None: there is none."""
    writes = plan.way != "send"
    if isinstance(theirs, str):
        mapped = theirs == "SIGBUS" and plan.truncated and writes
        return "Files for a callback" if mapped else None
    at = theirs.taken
    if not theirs.exact:
        # The rest of a mapped page is zeros.
        zeros = writes and plan.truncated and at > theirs.expected
        return "Files for a callback" if zeros else None
    offered = run_of_buffers(plan, theirs.accepted)
    if theirs.code == -3 and theirs.errno == errno.EMSGSIZE and offered > IOV_MAX:
        return "More than IOV_MAX buffers"
    if theirs.code == -3 and theirs.errno == errno.ENOTSOCK and plan.kind == "pipe" and offered:
        return "Buffers to a pipe or tty"
    if writes and half_dropped(theirs):
        return "iob_write, half written"
    if theirs.code == 0 and theirs.left > 0:
        if plan.way == "mixed" and at < theirs.expected:
            return "iob_write, then iob_send"
        if plan.truncated and at == theirs.expected and (ours.code, ours.taken) == (-3, at):
            return "A file that ends early"
    return None


def run_of_buffers(plan: Plan, position: int) -> int:
    """Return the length of the run of buffers around a position in the stream; 0: in a file range.

    All of the run counts, because iob_write leaves the buffers that are used up in the batch.
    """
    end = 0
    for buffers, group in groupby((entry for entry in plan.all_entries if entry.count), is_buffer):
        run = list(group)
        end += sum(entry.count for entry in run)
        if position < end:
            return len(run) if buffers else 0
    return 0


def is_buffer(entry: Entry) -> bool:
    return not entry.is_file


def half_dropped(theirs: Result) -> bool:
    """Return whether a call wrote half of what was left, and the rest is gone."""
    steps = zip(theirs.befores, theirs.codes, theirs.lefts, strict=True)
    return any(0 < code < before and not left for before, code, left in steps)
