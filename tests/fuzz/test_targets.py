"""The corpora, and seeded mutations of them, without atheris.

`python -m tests.fuzz` searches for more.
"""

from __future__ import annotations

import random

import pytest

from tests.fuzz.targets import CORPUS, TARGETS, run

# Of each target, unless its name is here: these run TLS handshakes, or sockets.
MUTATIONS = 300
FEWER = {"tls": 60, "connection": 100, "https": 60}


def mutated(rng: random.Random, corpus: list[bytes]) -> bytes:
    """Return an input with a few bytes removed, replaced, or put into it from another one."""
    raw = bytearray(rng.choice(corpus))
    for _ in range(rng.randrange(1, 4)):
        start = rng.randrange(len(raw) + 1)
        other = rng.choice(corpus)
        piece = rng.randrange(len(other) + 1)
        new = rng.choice([b"", rng.randbytes(1), other[piece : piece + rng.randrange(16)]])
        raw[start : start + rng.randrange(4)] = new
    return bytes(raw)


@pytest.mark.parametrize("name", TARGETS)
def test_property_holds_for_the_corpus_and_for_mutations_of_it(name: str) -> None:
    corpus = [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]
    rng = random.Random(name)
    for data in corpus:
        run(name, data)
    for _ in range(FEWER.get(name, MUTATIONS)):
        data = mutated(rng, corpus)
        try:
            run(name, data)
        except BaseException as exc:
            exc.add_note(f"input: {data!r}")
            raise


def test_each_target_has_a_corpus_and_each_corpus_a_target() -> None:
    assert {path.name for path in CORPUS.iterdir()} == set(TARGETS)
