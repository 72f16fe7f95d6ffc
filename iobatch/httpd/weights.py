"""Weights in header fields (RFC 9110 12.4.2): what a client prefers."""

from __future__ import annotations

import re

# Optional white space (RFC 9110 5.6.3). A str has more, of which float() allows another part.
_OWS = " \t"
# With any number of digits.
_WEIGHT = re.compile(r"0(\.[0-9]*)?|1(\.0*)?")


def weights(value: bytes) -> dict[str, float]:
    """Return the weights in a field's value by the names of its elements, in lower case.

    Parameters other than the weight are ignored: of elements with the same name the greatest weight
    counts.
    """
    found: dict[str, float] = {}
    for element in value.decode("latin-1").lower().split(","):
        name, *parameters = (part.strip(_OWS) for part in element.split(";"))
        found[name] = max(_weight(parameters), found.get(name, 0.0))
    return found


def media_type_weight(accept: bytes, media_type: str) -> float:
    """Return the weight of a media type in an Accept field (RFC 9110 12.5.1).

    The most specific range that matches it decides.
    """
    found = weights(accept)
    main_type, _, _ = media_type.partition("/")
    for media_range in (media_type, f"{main_type}/*", "*/*"):
        if media_range in found:
            return found[media_range]
    return 0.0


def _weight(parameters: list[str]) -> float:
    """Return the weight in an element's parameters; an invalid one is 0."""
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.rstrip(_OWS) == "q":
            value = value.lstrip(_OWS)
            return float(value) if _WEIGHT.fullmatch(value) else 0.0
    return 1.0
