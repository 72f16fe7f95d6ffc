"""Range requests."""

from __future__ import annotations

import email
import random
from email.utils import formatdate
from typing import TYPE_CHECKING

import pytest

from iobatch.httpd.ranges import MAX_RANGES, spans
from tests.support.batches import data
from tests.support.http import Response, split
from tests.support.httpd import (
    MODIFIED,
    TAG,
    Address,
    etag_of,
    exchange,
    get,
    replace_tag,
    show_headers,
)

if TYPE_CHECKING:
    from pathlib import Path

WHOLE = data(65536, seed=65536)
DATE = formatdate(MODIFIED, usegmt=True)


def parts(response: Response) -> list[tuple[str, bytes]]:
    """Return the Content-Range and the content of each part of a multipart response."""
    header = f"Content-Type: {response.headers['Content-Type']}\r\n\r\n".encode()
    message = email.message_from_bytes(header + response.body)
    assert message.get_content_type() == "multipart/byteranges"
    boundary = message.get_boundary()
    assert boundary
    assert response.body.endswith(f"\r\n--{boundary}--\r\n".encode())
    found = []
    for piece in response.body.split(f"--{boundary}".encode())[1:-1]:
        head, _, body = piece.partition(b"\r\n\r\n")
        fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n") if line)
        assert fields["Content-Type"] == "application/octet-stream"
        found.append((fields["Content-Range"], body.removesuffix(b"\r\n")))
    return found


def expected(spec: str, size: int) -> range | str:
    """Return the range of a spec by Python's slices; "bad": the spec is invalid."""
    first, last = spec.split("-")
    if (first and last and int(last) < int(first)) or not (first or last):
        return "bad"
    if not first:
        return range(size)[-int(last) :] if int(last) else range(0)
    return range(size)[int(first) : int(last) + 1 if last else None]


@pytest.mark.parametrize(
    ("value", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=0-", 0, 65536),
        ("bytes=65535-", 65535, 65536),
        ("bytes=-1", 65535, 65536),
        ("bytes=-100000", 0, 65536),
        ("bytes=1000-40000", 1000, 40001),
        ("bytes=60000-99999999999999999999999", 60000, 65536),
        ("BYTES=5-6", 5, 7),
        ("bytes= 5-6 ,", 5, 7),
        ("bytes=5-6,70000-", 5, 7),
        ("bytes=000000000000000000000000005-6", 5, 7),
        ("bytes=-10000000000000000000", 0, 65536),
        ("bytes=-" + "9" * 9999, 0, 65536),
        ("bytes=60000-" + "9" * 9999, 60000, 65536),
        ("bytes=5-6,10000000000000000000-", 5, 7),
    ],
)
def test_single_range_gives_that_part_and_its_position(
    site: Path, address: Address, value: str, start: int, stop: int
) -> None:
    response = get(address, "/65536", Range=value)
    assert response.status == 206
    assert response.body == WHOLE[start:stop]
    assert response.headers["Content-Range"] == f"bytes {start}-{stop - 1}/65536"
    assert response.headers["ETag"] == etag_of(site / "65536")
    assert response.headers["Content-Type"] == "application/octet-stream"


def test_several_ranges_come_as_multipart_in_the_requested_order(address: Address) -> None:
    response = get(address, "/65536", Range="bytes=-10, 0-0,100-50000,70000-,7-7")
    assert response.status == 206
    assert "Content-Range" not in response.headers
    assert parts(response) == [
        ("bytes 65526-65535/65536", WHOLE[-10:]),
        ("bytes 0-0/65536", WHOLE[:1]),
        ("bytes 100-50000/65536", WHOLE[100:50001]),
        ("bytes 7-7/65536", WHOLE[7:8]),
    ]


def test_each_multipart_response_has_another_boundary(address: Address) -> None:
    """No file can contain a boundary that is not known before."""
    first, second = (get(address, "/65536", Range="bytes=0-0,2-2").body for _ in range(2))
    assert first != second


@pytest.mark.parametrize(
    "value",
    [
        "bytes=65536-",
        "bytes=-0",
        "bytes=-" + "0" * 9999,
        "bytes=70000-80000,-0",
        "bytes=9223372036854775807-",
        "bytes=9223372036854775808-",
        "bytes=10000000000000000000-",
        "bytes=18446744073709551616-18446744073709551616",
        "bytes=" + "9" * 9999 + "-",
        "bytes=99999999999999999998-" + "9" * 20,
    ],
    ids=lambda value: value[:40],
)
def test_unsatisfiable_range_gets_416_with_the_size(address: Address, value: str) -> None:
    response = get(address, "/65536", Range=value)
    assert response.status == 416
    assert response.headers["Content-Range"] == "bytes */65536"


@pytest.mark.parametrize(
    "value",
    [
        "",
        "bytes",
        "bytes=",
        "bytes=,",
        "bytes=-",
        "bytes=a-b",
        "bytes=5-4",
        "bytes=99999999999999999999-99999999999999999998",
        "bytes=" + "9" * 9999 + "-" + "9" * 9998,
        "bytes=1-2-3",
        "bytes=+1-2",
        "bytes=1 - 2",
        "bytes=0-1,x",
        "lines=0-1",
        "bytes=0-1, bytes=2-3",
        "bytes=0-,0-",
        "bytes=0-,5-5",
        pytest.param("bytes=" + ",".join(["0-0"] * (MAX_RANGES + 1)), id="too many"),
        pytest.param("bytes=" + ",".join(f"5-{i}" for i in range(6, 1300)), id="overlapping"),
    ],
)
def test_invalid_or_excessive_ranges_are_ignored(address: Address, value: str) -> None:
    """Ranges that overlap could request many times the file (CVE-2011-3192)."""
    response = get(address, "/65536", Range=value)
    assert response.status == 200
    assert response.body == WHOLE


@pytest.mark.parametrize("size", [10**18 + 5, 2**63 - 1])
def test_digits_of_an_offset_are_never_cut(size: int) -> None:
    """XFS and tmpfs have sparse files of almost 2^63 bytes."""
    assert spans(b"bytes=10000000000000000000-", size) == []
    assert spans(b"bytes=%d-" % (10**18), size) == [(10**18, size - 10**18)]
    assert spans(b"bytes=-%d" % (10**19), size) == [(0, size)]


def test_empty_file_is_sent_whole(address: Address) -> None:
    for value in ("bytes=0-", "bytes=-5", "bytes=0-0"):
        assert get(address, "/0", Range=value).status == 200


def test_head_ignores_ranges(address: Address) -> None:
    response = get(address, "/65536", "HEAD", Range="bytes=0-0")
    assert (response.status, response.headers["Content-Length"]) == (200, "65536")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"If_Range": TAG}, 206),
        ({"If_Range": f"W/{TAG}"}, 200),
        ({"If_Range": '"other"'}, 200),
        ({"If_Range": "*"}, 200),
        ({"If_Range": DATE}, 206),
        ({"If_Range": formatdate(MODIFIED + 1, usegmt=True)}, 200),
        ({"If_Range": formatdate(MODIFIED - 1, usegmt=True)}, 200),
        ({"If_Range": "yesterday"}, 200),
        ({"If_None_Match": TAG}, 304),
        ({"If_Match": TAG}, 206),
        ({"If_Match": '"other"', "If_Range": TAG}, 412),
        ({"If_Unmodified_Since": DATE, "If_Range": '"other"'}, 200),
    ],
    ids=show_headers,
)
def test_preconditions_come_before_the_range_and_if_range_decides_on_it(
    site: Path, address: Address, headers: dict[str, str], status: int
) -> None:
    headers = replace_tag(headers, site / "65536")
    response = get(address, "/65536", Range="bytes=1-5", **headers)
    assert response.status == status
    if status == 200:
        assert response.body == WHOLE
    if status == 206:
        assert response.body == WHOLE[1:6]


def test_partial_and_whole_responses_keep_their_order(address: Address) -> None:
    values = ["bytes=0-9", "bytes=1-1,3-3", "bytes=99999-", "bytes=60000-", "x=1"] * 10
    raw = b"".join(
        f"GET /65536 HTTP/1.1\r\nHost: x\r\nRange: {value}\r\n\r\n".encode() for value in values
    )
    answers = split(exchange(address, raw))
    assert [answer.status for answer in answers] == [206, 206, 416, 206, 200] * 10
    assert answers[-2].body == WHOLE[60000:]


def test_ranges_agree_with_slices_and_never_exceed_the_file() -> None:
    rng = random.Random(1)
    seen = set()
    for _ in range(20000):
        size = rng.randrange(20)
        specs = []
        for _ in range(rng.randrange(1, 4)):
            first = rng.choice(["", str(rng.randrange(25))])
            specs.append(f"{first}-{rng.choice(['', str(rng.randrange(25))])}")
        found = spans(f"bytes={','.join(specs)}".encode(), size)
        seen.add(type(found) if found is None else min(len(found), 2))
        model = [expected(spec, size) for spec in specs]
        if size == 0 or "bad" in model:
            assert found is None
        else:
            wanted = [(each.start, len(each)) for each in model if each]  # type: ignore[union-attr]
            assert found == (wanted if sum(count for _, count in wanted) <= size else None)
    assert len(seen) == 4
