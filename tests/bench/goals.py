"""Measure the goals for the CPU time of the hot path, in its compiled and its pure form.

Processes, connections and clock are those of send.py, whose docstring describes them. The methods
for one response take turns in one run. A ratio is iobatch's CPU time divided by the other method's:
the median and the range of the ratios within each turn, and the ratio of the minima. The goals are
for the compiled form, and a goal is met if the median is not above it.

The kernel joins small responses if the sender is faster than the ACKs, and then a response takes
far less time. The last column shows the data segments per response, so a ratio of two methods with
different numbers can be recognized.

- libowfat: Nagle's algorithm is on for both, because libowfat holds back its last piece by
  MSG_MORE. All other connections have TCP_NODELAY.
- asyncio, uvloop, aiofastnet: writelines() and `await drain()` of asyncio's streams, over the
  transports of each; files are read by pread. The method with the lowest median counts. Without
  streams small responses take less time: `send` compares with that.
- 64 buffers: writelines() and addbufs() get a list that exists before the clock starts, and the
  program calls addbuf() in a loop.
- BatchWriter: on asyncio's loop, and the write is awaited.
- Python by hand: sock.send() of the same bytes. It checks the count, and waits for room.
- The lower bound is the ratio of the same system calls made by C by hand to the other method: no
  library can be below it, in whichever language.
"""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

from attrs import frozen

from tests.bench.report import format_spread, print_environment, print_table, ratios
from tests.bench.send_processes import (
    PACKAGES,
    PURE,
    measure_in_turn,
    running_receiver,
    running_senders,
    with_pure_form,
)
from tests.bench.send_workloads import KIB, LONE, MANY, PIPELINED, Workload, header_and_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tests.bench.report import Options
    from tests.bench.send_processes import Turn

LOWER_BOUND = "C by hand"
DRAIN = ["asyncio, drain", "uvloop, drain", "aiofastnet, drain"]


@frozen
class Goal:
    """A goal for the CPU time of a method of iobatch.

    Attributes:
        workload: the response.
        most: the highest ratio to the CPU time of the best rival.
        rivals: the methods that it is compared with.
        ours: the method of iobatch.

    """

    workload: Workload
    most: float
    rivals: Sequence[str] = DRAIN
    ours: str = "iobatch"


GOALS = [
    *(
        Goal(header_and_file(kib, nodelay=False), most, ["libowfat"])
        for kib, most in [(1, 0.75), (4, 0.9), (16, 1.05), (64, 1.05), (256, 1.05), (KIB, 1.0)]
    ),
    Goal(LONE, 0.88),
    Goal(MANY, 0.75, ours="iobatch, addbufs"),
    Goal(MANY, 0.85),
    Goal(PIPELINED, 0.8),
    *(
        Goal(header_and_file(kib), most)
        for kib, most in [(1, 0.88), (4, 0.83), (16, 0.78), (64, 0.62), (KIB, 0.32)]
    ),
    *(
        Goal(header_and_file(kib), most, ours="BatchWriter.write")
        for kib, most in [(1, 0.95), (KIB, 0.65)]
    ),
    Goal(LONE, 1.15, ["Python by hand"]),
]


def run(options: Options) -> None:
    """Print the table."""
    methods = dict.fromkeys([LOWER_BOUND])
    methods |= dict.fromkeys(name for goal in GOALS for name in (goal.ours, *goal.rivals))
    with (
        running_senders(options, methods) as (senders, processors),
        running_receiver(processors) as port,
    ):
        print_environment(["attrs", *PACKAGES])

        def rows() -> Iterator[list[str]]:
            measured: dict[str, dict[str, list[Turn]]] = {}
            for goal in GOALS:
                workload = goal.workload
                if workload.name not in measured:
                    same = [other for other in GOALS if other.workload == workload]
                    compared = with_pure_form(
                        [
                            LOWER_BOUND,
                            *(name for other in same for name in (other.ours, *other.rivals)),
                        ]
                    )
                    chosen = {name: sender for name, sender in senders.items() if name in compared}
                    measured[workload.name] = measure_in_turn(options, workload, chosen, port)
                yield goal_row(goal, measured[workload.name])

        head = ["response", "method", "compared with", "CPU, us", "at most"]
        head += ["lower bound", "compiled, us", "ratio", "of minima", "met"]
        head += ["pure, us", "ratio", "of minima", "segments: other, compiled, pure"]
        print_table("goals: CPU per response, compiled and pure form", head, rows())


def goal_row(goal: Goal, turns: Mapping[str, Sequence[Turn]]) -> list[str]:
    """Return the row of a goal, given the measurements of each method in each turn."""
    row = [goal.workload.name, goal.ours]
    found = [name for name in goal.rivals if name in turns]
    if not found:
        return [*row, f"missing: {', '.join(goal.rivals)}", "", f"{goal.most:g}", *[""] * 9]
    cpu = {name: [turn.cpu for turn in mine] for name, mine in turns.items()}
    best = min(found, key=lambda name: median(cpu[name]))
    row += [best, format_spread(cpu[best]), f"{goal.most:g}"]
    bound = cpu.get(LOWER_BOUND)
    row.append(format_spread(ratios(bound, cpu[best])) if bound else "")
    if goal.ours in cpu:
        met = median(ratios(cpu[goal.ours], cpu[best])) <= goal.most
        row += [*compare(cpu[goal.ours], cpu[best]), "yes" if met else "no"]
    else:
        row += ["not compiled", "", "", ""]
    segments = [
        f"{median(turn.segments for turn in turns[name]):.2f}" if name in turns else "-"
        for name in (best, goal.ours, goal.ours + PURE)
    ]
    return [*row, *compare(cpu[goal.ours + PURE], cpu[best]), ", ".join(segments)]


def compare(ours: Sequence[float], theirs: Sequence[float]) -> list[str]:
    """Return our time, the ratio in each turn, and the ratio of the minima."""
    return [
        format_spread(ours),
        format_spread(ratios(ours, theirs)),
        f"{min(ours) / min(theirs):.2f}",
    ]
