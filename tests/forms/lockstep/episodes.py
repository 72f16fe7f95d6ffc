"""Episodes: random operations on both sides, which are compared after each."""

from __future__ import annotations

import signal
import socket
import sys
import tempfile
from contextlib import ExitStack
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import pytest

from tests.forms.lockstep.operations import Draw
from tests.forms.lockstep.sides import CONTENT, FAKE_FILES, Side, on_signal, outcome
from tests.forms.lockstep.system import SYSTEM, install
from tests.support.batches import check_invariants
from tests.support.fakes import library_modules, pure_copy
from tests.support.interruptions import drain
from tests.support.sockets import stream_pair

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import ModuleType

STEPS_OF_EPISODE = 40


def run_episode(sides: tuple[Side, Side], seed: int) -> int:
    """Run random operations over scripted system calls; return how many ran."""
    draw = Draw(seed, scripted=True)
    names: list[str] = []
    sigpipe = signal.SIG_DFL if draw.chance(5) else signal.SIG_IGN
    timeout = draw.rng.choice([None, 0, 0, 0, 5])
    tcp = draw.chance(70)
    handlers = {
        number: signal.signal(number, handler)
        for number, handler in ((signal.SIGPIPE, sigpipe), (signal.SIGUSR1, on_signal))
    }
    try:
        for side in sides:
            SYSTEM.active = side
            side.sock.settimeout(timeout)
            side.begin(tcp=tcp)
        for _ in range(STEPS_OF_EPISODE):
            state = sides[0].batches
            crowded = any(
                len(batch._core.queue) > 1500 or batch.bytesleft > len(CONTENT) for batch in state
            )
            name, operation = draw.operation(crowded=crowded)
            names.append(name)
            script = draw.script()
            interrupted_read = draw.rng.randrange(1, 4) if draw.chance(2) else 0
            corked = int(draw.chance(10))
            results = []
            for side in sides:
                SYSTEM.active = side
                side.corked = corked
                side.start_step(script, interrupted_read)
                results.append(outcome(operation, side))
            if not compare(sides, results, f"episode {seed}: {names}"):
                break
        # What the batches still hold is released in the same order.
        for side in sides:
            SYSTEM.active = side
            interrupted = side.interrupted
            side.start_step(())
            side.interrupted = interrupted
            while side.batches:
                outcome(lambda side: side.batches.pop().reset(), side)
        if not any(side.interrupted for side in sides):
            compare_lists(*(side.calls(preads=False) for side in sides), f"end of episode {seed}")
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return len(names)


def run_real_episode(modules: Iterable[dict[str, ModuleType]], fd: int, seed: int) -> int:
    """Run random operations over real sockets with small buffers; return how many ran."""
    draw = Draw(seed, scripted=False)
    names: list[str] = []
    with ExitStack() as stack:
        stack.enter_context(pytest.MonkeyPatch.context()).setattr(
            sys, "unraisablehook", lambda args: None
        )
        sides, peers = [], []
        for each in modules:
            # On TCP the time of an acknowledgement could decide how many bytes a call takes.
            sock, peer = stack.enter_context(stream_pair("unix", buffers=4096))
            sock.setblocking(False)
            peer.setblocking(False)
            sides.append(Side(each, sock))
            sides[-1].files = (fd,) * len(FAKE_FILES)
            peers.append(peer)
        for _ in range(STEPS_OF_EPISODE):
            crowded = any(batch.bytesleft > len(CONTENT) for batch in sides[0].batches)
            name, operation = draw.operation(crowded=crowded)
            if name == "addfile_close":  # its descriptors have different numbers
                continue
            names.append(name)
            results, received = [], []
            for side, peer in zip(sides, peers, strict=True):
                side.start_step(())
                results.append(outcome(operation, side))
                received.append(drain(peer))
            assert received[0] == received[1], f"real episode {seed}: {names}"
            compare((sides[0], sides[1]), results, f"real episode {seed}: {names}")
        for side in sides:
            while side.batches:
                outcome(lambda side: side.batches.pop().reset(), side)
    return len(names)


def run_real(steps: int, first_episode: int = 0) -> tuple[int, int]:
    """Do as run_scripted() over real sockets."""
    modules = library_modules(), pure_copy()
    with tempfile.TemporaryFile(buffering=0) as file:
        file.write(CONTENT[:150_000])
        done, episode = 0, first_episode
        while done < steps:
            done += run_real_episode(modules, file.fileno(), episode)
            episode += 1
    return done, episode - first_episode


def compare_lists(first: list[Any], second: list[Any], where: str) -> None:
    if first != second:
        pairs = zip_longest(first, second, fillvalue="none")
        one, other = next(pair for pair in pairs if pair[0] != pair[1])
        raise AssertionError(f"{where}\n{one!r:.2000}\n{other!r:.2000}")


def compare(sides: tuple[Side, Side], results: list[object], where: str) -> bool:
    """Assert that both sides are equal; return whether the episode can go on."""
    first, second = sides
    if first.interrupted or second.interrupted:
        if not first.reads_interrupted:
            assert first.interrupted is second.interrupted, where
            assert first.stream() == second.stream(), where
        return False
    preads = not (first.short_read or second.short_read)
    compare_lists(results[:1], results[1:], where)
    compare_lists(first.calls(preads=preads), second.calls(preads=preads), where)
    compare_lists(first.state(), second.state(), where)
    assert first.taken == second.taken, where
    for batch in first.batches:
        if not batch._core.release_pending:
            check_invariants(batch)
    return True


def run_scripted(steps: int, first_episode: int = 0) -> tuple[int, int]:
    """Run this number of steps or a few more; return how many, and how many episodes."""
    with pytest.MonkeyPatch.context() as patch, socket.socket() as one, socket.socket() as other:
        sides = Side(library_modules(), one), Side(pure_copy(), other)
        install(patch, sides)
        try:
            done, episode = 0, first_episode
            while done < steps:
                done += run_episode(sides, episode)
                episode += 1
        finally:
            SYSTEM.active = None
    return done, episode - first_episode
