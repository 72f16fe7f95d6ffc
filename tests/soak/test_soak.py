"""The short form of the soak, which is bounded by counts, and leaks that it must see."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from iobatch import iob_send
from tests.soak.batches import Batches
from tests.soak.flatness import SPARE_BLOCKS, SPARE_BYTES, Flatness, Sample
from tests.soak.peers import Connection
from tests.soak.served import SETUPS, soak_server
from tests.soak.ways import WAYS, new_contexts, soak_way
from tests.support.sockets import reset

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator
    from pathlib import Path

    from iobatch import IOBatch
    from tests.soak.calls import Contexts
    from tests.support.httpd import Keys

TCP = "iob_send, TCP"


@pytest.fixture(scope="module")
def contexts() -> Contexts:
    return new_contexts()


@pytest.mark.parametrize("way", WAYS)
def test_way_to_send_among_hostile_peers_leaves_nothing_behind(
    way: str, tmp_path: Path, contexts: Contexts
) -> None:
    """Its bytes are right, and its hooks run once."""
    assert soak_way(way, tmp_path, contexts, batches=60, samples=3).growth() == []


@pytest.mark.parametrize("setup", SETUPS, ids=lambda setup: setup.name)
def test_file_server_among_hostile_clients_is_flat(setup: Any, tmp_path: Path, keys: Keys) -> None:
    soak = soak_server(setup, tmp_path, keys, actions=8, cycles=4)
    assert soak.growth() == []
    assert soak.seen["200"]


# Leaks


@pytest.fixture
def kept() -> Iterator[list[Any]]:
    """Give a list for what is leaked; descriptors in it are closed at the end."""
    leaked: list[Any] = []
    yield leaked
    for each in leaked:
        if isinstance(each, int):
            os.close(each)
    leaked.clear()


def patch_send(patch: pytest.MonkeyPatch, before: Any) -> None:
    """Call a function of the batch and the socket before each call of iob_send."""

    def send(sock: socket.socket, batch: IOBatch) -> int:
        before(sock, batch)
        return iob_send(sock, batch)

    patch.setattr("tests.soak.calls.iob_send", send)


def test_batch_that_is_kept_is_seen(
    tmp_path: Path, contexts: Contexts, monkeypatch: pytest.MonkeyPatch, kept: list[Any]
) -> None:
    patch_send(monkeypatch, lambda _sock, batch: kept.append(batch))
    found = soak_way(TCP, tmp_path, contexts, batches=60, samples=3).growth()
    assert any(each.startswith("iobatch._batch.IOBatch: ") for each in found)


def test_batch_that_is_kept_by_its_hook_is_seen(
    tmp_path: Path, contexts: Contexts, monkeypatch: pytest.MonkeyPatch, kept: list[Any]
) -> None:
    release = Batches._release

    def leaky(self: Batches, *arguments: object) -> None:
        kept.append(arguments)
        release(self, *arguments)

    monkeypatch.setattr(Batches, "_release", leaky)
    found = soak_way(TCP, tmp_path, contexts, batches=60, samples=3).growth()
    assert any(each.startswith("iobatch._batch.IOBatch: ") for each in found)


def test_bytes_that_are_kept_for_each_batch_are_seen(
    tmp_path: Path, contexts: Contexts, monkeypatch: pytest.MonkeyPatch, kept: list[Any]
) -> None:
    """The garbage collector does not track them."""
    patch_send(monkeypatch, lambda _sock, batch: kept.append(bytes(100)))
    found = soak_way(TCP, tmp_path, contexts, batches=1800, samples=3).growth()
    assert any("blocks of memory" in each for each in found)


def test_descriptor_that_is_kept_for_each_reset_is_seen(
    tmp_path: Path, contexts: Contexts, monkeypatch: pytest.MonkeyPatch, kept: list[Any]
) -> None:
    """Every fifth turn of a peer is a reset, so that each sample follows many."""
    turn = Connection.turn

    def leaky(sock: socket.socket) -> None:
        kept.append(os.dup(sock.fileno()))
        reset(sock)

    def resetting(self: Connection) -> None:
        if not self.lost and self.random.random() < 0.2:
            self.lost = True
            self._reset()
        turn(self)

    monkeypatch.setattr("tests.soak.peers.reset", leaky)
    monkeypatch.setattr(Connection, "turn", resetting)
    found = soak_way(TCP, tmp_path, contexts, batches=240, samples=3).growth()
    assert any(each.startswith("descriptors: ") for each in found)


def test_hook_that_does_not_run_is_seen(
    tmp_path: Path, contexts: Contexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Batches, "_release", lambda *_: None)
    with pytest.raises(AssertionError, match="hooks ran"):
        soak_way(TCP, tmp_path, contexts, batches=60, samples=3)


def test_byte_that_is_sent_twice_is_seen(
    tmp_path: Path, contexts: Contexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch_send(monkeypatch, lambda sock, _batch: sock.send(b"x"))
    with pytest.raises(AssertionError, match="other bytes have arrived"):
        soak_way(TCP, tmp_path, contexts, batches=60, samples=3)


# A fault may have left no descriptor.
LEAKY_SERVER = """
import os, sys
from contextlib import suppress
from iobatch.httpd.connection import Connection
from tests.soak import observed

kept, close = [], Connection.close

def leaky(self):
    kept.append([])
    with suppress(OSError):
        kept[-1].append(os.dup(self.sock.fileno()))
    close(self)

Connection.close = leaky
sys.exit(observed.run())
"""


def test_what_the_server_keeps_for_each_connection_is_seen(tmp_path: Path, keys: Keys) -> None:
    program = ("-c", LEAKY_SERVER)
    soak = soak_server(SETUPS[0], tmp_path, keys, actions=12, cycles=2, program=program)
    found = {each.partition(":")[0] for each in soak.growth()}
    assert found >= {"builtins.list", "descriptors"}


# The judgement


def sample_of(*, resident: int = 0, blocks: int = 0, descriptors: int = 0) -> Sample:
    return Sample(resident, blocks, {"descriptors": descriptors})


@pytest.mark.parametrize(
    ("samples", "found"),
    [
        ([0, 0, 0], []),
        ([1, 1, 1], []),  # made late, once
        ([1, 0, 1], []),
        ([0, 1, 2], ["descriptors: 0, then 2"]),
        ([1, 2, 0], ["descriptors: 0, then 0"]),
    ],
)
def test_count_that_grows_twice_is_not_flat(samples: list[int], found: list[str]) -> None:
    flatness = Flatness(sample_of())
    for descriptors in samples:
        flatness.add(sample_of(descriptors=descriptors), 10)
    assert flatness.growth() == found


def test_memory_above_its_bound_is_not_flat() -> None:
    for more, found in ((0, []), (1, ["2101 more blocks of memory", "8.0 more MiB of memory"])):
        flatness = Flatness(sample_of())
        flatness.add(
            sample_of(resident=SPARE_BYTES + 40_000 + more, blocks=SPARE_BLOCKS + 100 + more), 5000
        )
        assert flatness.growth() == found
