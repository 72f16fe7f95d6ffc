"""Header fields by which a client chooses: codings, media types, views and parts of a file."""

from __future__ import annotations

import re

from iobatch.httpd.codings import accepts_identity, choose
from iobatch.httpd.ranges import MAX_RANGES, content_range, multipart, spans
from iobatch.httpd.views import HTML, JSON, view_of
from iobatch.httpd.weights import media_type_weight, weights

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_OWS = r"[ \t]*"
_WEIGHT = rf"{_OWS};{_OWS}[qQ]=(0(?:\.[0-9]{{0,3}})?|1(?:\.0{{0,3}})?)"
# An element of Accept-Encoding, and one of Accept without parameters other than the weight.
_CODING = re.compile(rf"({_TOKEN})(?:{_WEIGHT})?")
_MEDIA_RANGE = re.compile(rf"({_TOKEN}/{_TOKEN})(?:{_WEIGHT})?")
_SPEC = re.compile(rb"(\d*)-(\d*)")
_AVAILABLE = [(), ("gzip",), ("br", "zstd", "gzip"), ("zstd", "gzip")]


def ranges(data: bytes) -> None:
    """Assert that a Range, after the size of its file in digits, has the spans of RFC 9110 14.1.2.

    No span is empty or ends after the file, and all of them together are no longer than the file.
    """
    digits, _, value = data.partition(b" ")
    size = int(digits[:6]) if digits.isdigit() else len(digits)
    found = spans(value, size)
    assert found == _slow_spans(value, size)
    if found:
        assert all(0 <= offset < offset + count <= size for offset, count in found)
        assert sum(count for _, count in found) <= size
        for offset, count in found:
            line = b"Content-Range: bytes %d-%d/%d\r\n" % (offset, offset + count - 1, size)
            assert content_range((offset, count), size) == line
        headers, leads, end = multipart(found, size, "text/plain")
        body = len(b"".join(leads)) + sum(count for _, count in found) + len(end)
        assert headers.endswith(b"\r\nContent-Length: %d\r\n" % body)


def _slow_spans(value: bytes, size: int) -> list[tuple[int, int]] | None:
    """Return the spans of a Range by Python's ranges and large integers."""
    unit, mark, rest = value.partition(b"=")
    specs = [each.strip(b" \t") for each in rest.split(b",")]
    specs = [each for each in specs if each]
    matches = [_SPEC.fullmatch(each) for each in specs]
    if not mark or unit.strip().lower() != b"bytes" or not size or not matches:
        return None
    found: list[tuple[int, int]] = []
    total = 0
    for match in matches:
        if match is None or match[0] == b"-":
            return None
        first, last = match.groups()
        if first and last and int(last) < int(first):
            return None
        if first:
            part = range(size)[int(first) : int(last) + 1 if last else size]
        else:
            part = range(size)[max(size - int(last), 0) :]
        if part:
            found.append((part.start, len(part)))
        total += len(part)
    return None if total > size or len(specs) > MAX_RANGES else found


def codings(data: bytes) -> None:
    """Assert that the chosen coding is available and acceptable, and has the greatest weight."""
    stated = _elements(data, _CODING)
    for available in _AVAILABLE:
        coding = choose(data, available)
        assert coding in {"", *available}
        if coding:
            assert _weight(weights(data), coding) > 0
        if stated is not None:
            allowed = {each: _weight(stated, each) for each in available}
            # Identity is acceptable unless the field excludes it (RFC 9110 12.5.3). It is preferred
            # only where the field gives it more weight than the codings.
            greatest = max(allowed.values(), default=0.0)
            if coding:
                assert allowed[coding] == greatest >= stated.get("identity", 0.0)
            else:
                assert greatest == 0 or greatest < stated.get("identity", 0.0)
    if stated is not None:
        assert accepts_identity(data) is (stated.get("identity", stated.get("*", 1.0)) > 0)


def _weight(stated: dict[str, float], coding: str) -> float:
    names = {coding, "x-gzip"} if coding == "gzip" else {coding}  # RFC 9110 8.4.1.3
    return max((stated[name] for name in names & set(stated)), default=stated.get("*", 0.0))


def accept(data: bytes) -> None:
    """Assert that the address of the page that a query asks for asks for the same page.

    The weight of a media type in Accept, after the query, is that of RFC 9110 12.5.1.
    """
    query, _, value = data.partition(b" ")
    view = view_of(query, value)
    assert view.content_type in {HTML, JSON}
    assert 1 <= view.number < 10**9
    assert view_of(view.address.removeprefix("./").encode(), value) == view
    assert re.fullmatch(r"\./|\?[a-z0-9=&-]+", view.address)
    stated = _elements(value, _MEDIA_RANGE)
    for media_type in ("text/html", "application/json"):
        weight = media_type_weight(value, media_type)
        assert 0 <= weight <= 1
        if stated is not None:
            names = (media_type, media_type.partition("/")[0] + "/*", "*/*")
            matching = [stated[name] for name in names if name in stated]
            assert weight == (matching[0] if matching else 0.0)


def _elements(value: bytes, form: re.Pattern[str]) -> dict[str, float] | None:
    """Return the weights of a list by its grammar; None: the value is malformed, or repeats one."""
    found: dict[str, float] = {}
    for element in value.decode("latin-1").split(","):
        stripped = element.strip(" \t")
        if not stripped:
            continue
        match = form.fullmatch(stripped)
        if match is None or match[1].lower() in found:
            return None
        found[match[1].lower()] = float(match[2] or 1)
    return found
