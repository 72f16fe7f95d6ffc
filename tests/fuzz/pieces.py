"""Input cut into pieces."""

from __future__ import annotations

import random
from zlib import crc32


def pieces_of(data: bytes) -> list[list[bytes]]:
    """Return input byte by byte, and cut at random places, which depend only on the input."""
    rng = random.Random(crc32(data))
    cuts = sorted(rng.choices(range(len(data) + 1), k=rng.randrange(1, 5)))
    return [
        [data[i : i + 1] for i in range(len(data))],
        [data[i:j] for i, j in zip([0, *cuts], [*cuts, len(data)], strict=True)],
    ]
