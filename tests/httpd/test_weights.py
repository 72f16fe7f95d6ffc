"""Weights: which media type a client prefers. test_codings.py has the form of a weight."""

from __future__ import annotations

import pytest

from iobatch.httpd.weights import media_type_weight


@pytest.mark.parametrize(
    ("accept", "weight"),
    [
        (b"application/json", 1.0),
        (b"application/*", 1.0),
        (b"*/*", 1.0),
        (b"application/json;q=0.3, application/*;q=0.2, */*;q=0.1", 0.3),
        (b"*/*, application/*;q=0.2", 0.2),
        (b"*/*, application/*, Application/JSON ; Q=0", 0.0),
        (b"application/json; version=2; q=0.5", 0.5),
        (b"application/json;q=2", 0.0),
        (b"text/*, application/ld+json", 0.0),
        (b"*", 0.0),
        (b"", 0.0),
        (b"\xff,;,/", 0.0),
    ],
)
def test_most_specific_range_decides_the_weight_of_a_media_type(
    accept: bytes, weight: float
) -> None:
    assert media_type_weight(accept, "application/json") == weight
