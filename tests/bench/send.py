"""Measure iob_send against the C and Python methods to send a response.

A response consists of 200-byte buffers and ranges of a file (random bytes, in the page cache), and
goes over TCP on loopback. Each method is a separate process (senders.c, senders.py), so that none
shares another's imports, heap or loop; the process lives for the whole run, and opens a new
connection in each turn. Sockets are non-blocking and have TCP_NODELAY, as a server's have, so each
response leaves at once. Only the lone buffer is also sent without TCP_NODELAY.

CPU is process_time(), user and system, per response, over as many responses as take about 0.15
seconds. Imports, connecting and the start of a loop are not measured. A sender on a network doesn't
pay for loopback, so the benchmark keeps the cost of loopback low: the receiver has another
processor, polls without sleeping, and lets the kernel discard the bytes. (The sender pays for
waking a receiver that sleeps, and a receiver that copies is slower than sendfile. Both together
make 1 MiB four times as expensive, with a spread that hides the differences between methods.) Nor
is any sender paced: the congestion control is Reno, whatever the system's default, because BBR's
timers would cost more than everything else. All figures still contain the kernel's receiving side.

System calls are counted under strace over a few responses. strace slows down the sender so much
that the socket always has room, so calls that wait for room are not counted. Data segments are
those of a single response on a connection of its own with the MSS of Ethernet, 1460, as TCP_INFO
reports them after a shutdown; on these connections all bytes are compared. In the measured turns
only the number of bytes is. Below 128 KiB the goal is never to send more segments than libowfat:
the highest counts over all tries are compared. From 128 KiB on the medians are compared.

iobatch's compiled and pure forms are two methods. goals.py has the goals for the CPU time. The last
tables, see breakdown.py, show where the time goes.

Differences between the methods:

- A library receives buffers and ranges, and chooses the system calls. A loop by hand knows the
  response in advance, and is the lower bound for a library: in C, and in Python.
- libevent sends each range by a sendfile call of its own, or maps the file. Here the file is mapped
  once for all responses, as in a server that keeps its files open; if the file is truncated while
  it is sent, the program gets SIGBUS, where the other methods get an error.
- libowfat sends a response without a file range with MSG_MORE, so the kernel holds the last segment
  back until more bytes follow, for at most 200 ms; the column "segments in the run" shows this. Its
  CPU time is that of a copy into the socket; compare iobatch with "C by hand" there instead.
- Without TCP_NODELAY the kernel joins small responses if the sender is faster than the ACKs, and a
  segment costs more than everything else: a sender just below that rate sends, and pays for, one
  segment per response. There too, look at "segments in the run" before comparing CPU.
- asyncio, uvloop and aiofastnet run a minimal protocol, without streams. aiofastnet gives asyncio's
  loop its own transports. A response of buffers is a list that exists before the clock starts,
  while iobatch adds buffer by buffer, except in "iobatch, addbufs". Files are read in the loop's
  thread; reading them in a thread pool, which never blocks the loop, would cost more. Methods that
  send in pieces use the piece size that was measured to be the best.
- trio's streams set TCP_NOTSENT_LOWAT to 16 KiB. All other socket options are the same.
- twisted sends in the next turn of its reactor, and each write of trio takes a turn of its loop, by
  design. The other methods send at once if the socket has room.
"""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from statistics import median
from typing import TYPE_CHECKING

from attrs import frozen

from tests.bench import breakdown
from tests.bench.plot import write_bar_chart
from tests.bench.report import (
    format_spread,
    print_environment,
    print_table,
    ratios,
    report_missing,
)
from tests.bench.send_processes import (
    C_PROGRAMS,
    PACKAGES,
    PURE,
    Sender,
    measure_in_turn,
    running_receiver,
    running_senders,
    trace_system_calls,
)
from tests.bench.send_workloads import BROKEN_DOWN, BY_LINE, KIB, PLOTTED, WORKLOADS, Workload
from tests.bench.senders import METHODS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.bench.report import Options

SEGMENT_TRIES = 5  # connections whose segments are counted
# The methods that goals.py compares; aio.py also has them.
AWAITED = {"BatchWriter.write", "asyncio, drain", "uvloop, drain", "aiofastnet, drain"}
# The methods in the plot.
PLOTTED_METHODS = [
    "iobatch",
    "iobatch" + PURE,
    "libowfat",
    "libevent",
    "libevent, mmap",
    "asyncio",
    "uvloop",
    "aiofastnet",
    "twisted",
]


@frozen
class Result:
    """The measurements of a method for a workload."""

    cpu: Sequence[float]  # microseconds per response, in each turn
    in_run: Sequence[float]  # data segments per response, in each turn
    segments: Sequence[float]  # data segments of a single response, in each try


def run(options: Options) -> None:
    """Print the tables."""
    with ExitStack() as stack:
        names = [*(name for name in METHODS if name not in AWAITED), *C_PROGRAMS]
        senders, processors = stack.enter_context(running_senders(options, names))
        drop_port = stack.enter_context(running_receiver(processors))
        check_port = stack.enter_context(running_receiver(processors, check=True))
        calls: dict[str, dict[str, float]] = {}
        if shutil.which("strace"):
            for name, sender in senders.items():
                calls[name] = trace_system_calls(options, sender, drop_port, WORKLOADS)
        else:
            report_missing(options, "strace", "apt-get install strace")
        print_environment(["attrs", *PACKAGES])
        results = {}
        for workload in WORKLOADS:
            suitable = {name: sender for name, sender in senders.items() if workload.suits(name)}
            results[workload.name] = measure(options, workload, suitable, (drop_port, check_port))
            print_workload(workload, results[workload.name], calls)
        print_segment_goals(results)
        write_plot(options, results)
        path = next(iter(senders.values())).path
        opened = stack.enter_context(path.open("rb", buffering=0))
        breakdown.print_breakdown(options, (drop_port, opened), BROKEN_DOWN, BY_LINE)


def measure(
    options: Options, workload: Workload, senders: Mapping[str, Sender], ports: tuple[int, int]
) -> dict[str, Result]:
    """Measure the senders in turn."""
    drop_port, check_port = ports
    tries = options.rounds(SEGMENT_TRIES)
    alone = {
        name: [sender.send(check_port, workload, 1, check=True).segments for _ in range(tries)]
        for name, sender in senders.items()
    }
    turns = measure_in_turn(options, workload, senders, drop_port)
    return {
        name: Result([turn.cpu for turn in mine], [turn.segments for turn in mine], alone[name])
        for name, mine in turns.items()
    }


def ours_of(results: Mapping[str, Result]) -> Result:
    """Return iobatch's result: the compiled form's, if there is one."""
    return results.get("iobatch") or results["iobatch" + PURE]


def format_count(values: Sequence[float]) -> str:
    """Format a count, or its median and range if it varies."""
    return format_spread(values, 0) if len(set(values)) > 1 else f"{values[0]:.0f}"


def print_workload(
    workload: Workload, results: Mapping[str, Result], calls: Mapping[str, Mapping[str, float]]
) -> None:
    """Print the table of a workload."""
    head = ["method", "CPU, us", "iobatch / method", "system calls", "data segments"]
    ours = ours_of(results)
    rows = [] if "iobatch" in results else [["iobatch", "not compiled", "", "", ""]]
    for name, result in results.items():
        row = [
            name,
            format_spread(result.cpu),
            "" if result is ours else format_spread(ratios(ours.cpu, result.cpu)),
            f"{round(calls[name][workload.name], 1):g}" if calls else "?",
            format_count(result.segments),
        ]
        if workload.buffers_only:
            row.append(format_spread(result.in_run))
        rows.append(row)
    print_table(
        f"send: {workload.name}",
        [*head, "segments in the run"] if workload.buffers_only else head,
        rows,
    )


def print_segment_goals(results: Mapping[str, Mapping[str, Result]]) -> None:
    """Print the goals for data segments, and whether they are met."""
    rows = []
    for workload in WORKLOADS:
        by_method = results[workload.name]
        if "libowfat" in by_method:
            ours, theirs = ours_of(by_method).segments, by_method["libowfat"].segments
            rows.append([workload.name, *segment_goal_cells(workload, ours, theirs)])
    head = ["response", "iobatch", "libowfat", "compared", "ratio", "goal", "met"]
    print_table("send: goals, data segments", head, rows)


def segment_goal_cells(
    workload: Workload, ours: Sequence[float], theirs: Sequence[float]
) -> list[str]:
    """Return the cells of the goal for data segments."""
    if workload.size < 128 * KIB:  # never more than libowfat
        how, ratio, most = "maxima", max(ours) / max(theirs), 1.0
    else:
        how, ratio, most = "medians", median(ours) / median(theirs), 1.1
    cells = [format_count(ours), format_count(theirs), how, f"{ratio:.3f}"]
    return [*cells, f"{most:g}", "yes" if ratio <= most else "no"]


def write_plot(options: Options, results: Mapping[str, Mapping[str, Result]]) -> None:
    """Plot the CPU time of the main methods and workloads."""
    if options.plots is None:
        return
    groups = {
        workload.name: {
            f"{name} (held back)" if workload.buffers_only and name == "libowfat" else name: median(
                results[workload.name][name].cpu
            )
            for name in PLOTTED_METHODS
            if name in results[workload.name]
        }
        for workload in PLOTTED
    }
    write_bar_chart(options.plots / "send.svg", "CPU per response; shorter is better", "us", groups)
