"""The targets of fuzzing: functions of bytes, which raise where the property they state is false.

Each takes what comes from outside in one place of the library. Its docstring states the property.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from tests.fuzz import clients, conditions, connections, heads, paths, preferences, records

if TYPE_CHECKING:
    from collections.abc import Callable

# For each target, a folder of inputs that reach what it can reach.
CORPUS = Path(__file__).parent / "corpus"

TARGETS: dict[str, Callable[[bytes], None]] = {
    each.__name__: each
    for each in (
        heads.heads,
        paths.targets,
        paths.walk,
        preferences.ranges,
        preferences.codings,
        preferences.accept,
        conditions.conditions,
        clients.hosts,
        clients.forwarded,
        clients.authorization,
        clients.log,
        records.tls,
        connections.connection,
        connections.https,
    )
}


def run(name: str, data: bytes) -> None:
    """Run a target on one input, and assert that it leaves no descriptor open."""
    before = _next_descriptor()
    TARGETS[name](data)
    assert _next_descriptor() == before, "a descriptor is left open"


def _next_descriptor() -> int:
    fd = os.open("/", os.O_PATH)
    os.close(fd)
    return fd
