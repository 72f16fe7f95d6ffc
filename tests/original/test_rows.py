"""What libowfat and iobatch do, for each row of the table of departures in iobatch-libowfat(7).

Each scenario of rows.py runs with both. tests/test_departures.py has more facts about iobatch.
"""

from __future__ import annotations

import mmap
import re
import signal
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from tests.original import rows
from tests.original.worker import INSTALLED, Killed, Worker
from tests.support.batches import IOV_MAX
from tests.support.manpages import covered, subjects
from tests.support.programs import tool

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Both = Callable[..., tuple[Any, Any]]
    Traced = Callable[..., list[tuple[Any, list[str]]]]

THEIRS, OURS = "libowfat", INSTALLED
DEPARTURES = ("iobatch-libowfat.7", "Departures from libowfat")
NETWORK = "sendto,sendmsg,sendfile"
MEMORY = "mmap,madvise,fadvise64"


def test_the_tests_here_and_the_rows_of_the_table_correspond_in_order() -> None:
    assert covered(globals(), *DEPARTURES) == subjects(*DEPARTURES)


@pytest.fixture(scope="module")
def both(worker: Worker) -> Both:
    """Return a function that calls a scenario with libowfat and with iobatch.

    It returns both results; of a process that a signal ended, the signal.
    """

    def call(scenario: Callable[..., Any], *args: Any) -> tuple[Any, Any]:
        results = []
        for library in (THEIRS, OURS):
            try:
                results.append(worker.call(library, scenario, *args))
            except Killed as killed:
                results.append(killed.args[0])
        return results[0], results[1]

    return call


@pytest.fixture
def traced(tmp_path: Path) -> Traced:
    """Return a function that calls a scenario under strace, with libowfat and with iobatch.

    It returns for each what the scenario returned, and the system calls with their results. What
    the scenario returns begins with the number of its process.
    """
    strace = tool("strace", "strace")
    log = tmp_path / "strace"

    def call(scenario: Callable[..., Any], calls: str) -> list[tuple[Any, list[str]]]:
        with Worker([strace, "-fqq", "-o", str(log), "-e", f"trace={calls}"]) as worker:
            results = [worker.call(library, scenario) for library in (THEIRS, OURS)]
        lines = log.read_text().splitlines()
        return [
            (rest, [line.split(maxsplit=1)[1] for line in lines if line.split()[0] == str(pid)])
            for pid, *rest in results
        ]

    return call


def test_a_file_that_ends_early_is_done_with_bytes_left(both: Both) -> None:
    for count in (1000, rows.LARGE):  # iobatch reads the first range, and sends the second one
        left = count - 100
        assert both(rows.short_file, count) == (([100, 0, 0], left), ([100, -3, -3], left))


def test_socket_full_after_some_bytes_returns_minus_1(both: Both) -> None:
    """libowfat: the files were sent, and then the buffer met EAGAIN."""
    (files, *theirs), (our_files, code, left, next_code) = both(rows.full_after_some_bytes)
    assert files > 0
    assert theirs == [-1, rows.LARGE, -1]
    assert code == our_files + rows.LARGE - left > 0
    assert next_code == -1


def test_more_than_iov_max_buffers_are_an_error_or_a_crash(both: Both) -> None:
    """The array of the buffers is on the stack."""
    assert both(rows.many_buffers, IOV_MAX) == (IOV_MAX, IOV_MAX)
    assert both(rows.many_buffers, IOV_MAX + 1) == (-3, IOV_MAX + 1)
    theirs, ours = both(rows.many_buffers, 100_000)
    assert theirs is signal.SIGSEGV
    assert ours > 0


def test_tcp_cork_stays_set(both: Both) -> None:
    """After a full socket, and after a short file."""
    assert both(rows.cork) == ([(-1, 1), (0, 1)], [(-1, 0), (-3, 0)])


def test_msg_more_is_set_on_the_last_piece(traced: Traced) -> None:
    (_, theirs), (_, ours) = traced(rows.send_one_buffer, NETWORK)
    assert [("MSG_MORE" in call) for call in theirs] == [True]
    assert [("MSG_MORE" in call) for call in ours] == [False]


def test_msg_zerocopy_leaves_an_error_condition(both: Both) -> None:
    """Its notifications are in the socket's error queue, which nothing reads."""
    assert both(rows.large_buffers_over_tcp) == (True, False)


def test_sigpipe_kills(both: Both) -> None:
    assert both(rows.lost_peer) == (signal.SIGPIPE, -3)


def test_buffers_to_a_pipe_or_tty_are_an_error(both: Both) -> None:
    assert both(rows.to_pipe_and_tty) == ([-3, -3, 100] * 2, [6, 106, 100] * 2)


def test_sendfile_refused_is_an_error(both: Both, tmp_path: Path) -> None:
    assert both(rows.sendfile_refused, tmp_path / "out") == (-3, 40_000)


def test_small_files_go_by_sendfile(traced: Traced) -> None:
    (_, theirs), (_, ours) = traced(rows.send_header_and_file, NETWORK)
    assert [call.partition("(")[0] for call in theirs] == ["sendto", "sendfile"]
    assert [call.rpartition(" = ")[2] for call in ours] == ["1006"]


def test_bytes_in_one_iob_send_have_no_bound(both: Both, tmp_path: Path) -> None:
    assert both(rows.one_send, tmp_path / "out") == (rows.LARGE, 2 << 20)


def test_files_and_buffers_are_held_until_the_batch_ends(both: Both) -> None:
    """A file that is used up is open in libowfat's batch."""
    assert both(rows.used_up_file) == (True, False)


def test_owned_but_empty_buffers_are_leaked(both: Both, worker: Worker) -> None:
    """A mapping that is owned and empty is leaked, but neither a file nor another mapping."""
    assert both(rows.empty_file) == (False, False)
    leaks = partial(worker.call, THEIRS, rows.leaks_owned_mapping)
    assert (leaks(0), leaks(mmap.PAGESIZE)) == (True, False)


def test_total_length_wraps_around(both: Both) -> None:
    """The sum of three ranges of 2**63 - 1 bytes."""
    assert both(rows.three_halves) == (3 * (2**63 - 1) % 2**64, "OverflowError")


def test_prefetch_is_of_the_first_file_past_its_first_page(traced: Traced) -> None:
    """30000 bytes are prefetched, of two files of 20000 bytes."""
    ((first, _), theirs), ((our_first, our_second), ours) = traced(rows.prefetch, MEMORY)
    [advised] = [call for call in theirs if "MADV_WILLNEED" in call]
    [address] = re.findall(r"0x\w+", advised)
    [mapped] = [call for call in theirs if call.endswith(f"= {address}")]
    assert f", {first}, {mmap.PAGESIZE:#x})" in mapped
    assert [call for call in ours if "fadvise" in call] == [
        f"fadvise64({our_first}, 0, 20000, POSIX_FADV_WILLNEED) = 0",
        f"fadvise64({our_second}, 0, 10000, POSIX_FADV_WILLNEED) = 0",
    ]


def test_iob_write_half_written_drops_the_other_half(both: Both) -> None:
    """The callback takes 4 of 8 bytes: the code, and the bytes left."""
    assert both(rows.half_written) == ((4, 0), (4, 4))


def test_iob_write_then_iob_send_is_done_with_bytes_left(both: Both) -> None:
    assert both(rows.write_then_send) == ((3, [0, 0], 8), (3, [8, 0], 0))


def test_bytes_in_one_iob_write_have_no_bound(both: Both) -> None:
    assert both(rows.one_write) == (3 * 65536, 65536)


def test_retry_after_again_differs_in_length(both: Both) -> None:
    theirs, ours = both(rows.retried_offers)
    assert theirs[0] < theirs[1]
    assert ours == [10_000, 10_000]


def test_files_for_a_callback_are_mapped(both: Both) -> None:
    """A mapping has zeros in the rest of the last page, and it outlives its batch."""
    assert both(rows.truncated_for_callback, 0, 20_000) == (signal.SIGBUS, (-3, 0, 0))
    assert both(rows.truncated_for_callback, 100, 1000) == ((1000, 100, 900), (100, 100, 0))
    assert both(rows.second_file) == (b"first", b"other")


def test_callback_returns_too_much_is_clamped(both: Both) -> None:
    assert both(rows.takes_too_much) == (6, "ValueError")


def test_callback_returns_minus_1_is_minus_1_or_minus_3(both: Both) -> None:
    """-1 with EIO, -1 with EAGAIN, -3 with EIO, -3 with EAGAIN; iobatch ignores the errno."""
    assert both(rows.callback_codes, b"buffer") == ([-1, -1, -3, -3], [-1, -1, -3, -3])
    assert both(rows.callback_codes, 100) == ([-3, -1, -3, -1], [-1, -1, -3, -3])


def test_event_loop_knows_files_and_must_know_sockets(both: Both) -> None:
    """The number of epoll descriptors, and the code of a send to a socket that it doesn't know."""
    assert both(rows.event_loop) == ((1, -3), (0, 100))
