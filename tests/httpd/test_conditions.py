"""Conditional requests: preconditions, entity tags and dates."""

from __future__ import annotations

import os
from email.utils import formatdate
from typing import TYPE_CHECKING

import pytest

from iobatch.httpd.conditions import file_tag, http_date
from tests.support.batches import data
from tests.support.http import split
from tests.support.httpd import (
    MODIFIED,
    TAG,
    Address,
    etag_of,
    exchange,
    get,
    replace_tag,
    serving,
    show_headers,
)

if TYPE_CHECKING:
    from pathlib import Path

SINCE = formatdate(MODIFIED, usegmt=True)
BEFORE = formatdate(MODIFIED - 1, usegmt=True)
AFTER = formatdate(MODIFIED + 1, usegmt=True)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"If_None_Match": TAG}, 304),
        ({"If_None_Match": f"W/{TAG}"}, 304),
        ({"If_None_Match": "*"}, 304),
        ({"If_None_Match": f'"a", "b,c" ,{TAG}'}, 304),
        ({"If_None_Match": '"other"'}, 200),
        ({"If_None_Match": TAG.strip('"')}, 200),
        ({"If_None_Match": f"w/{TAG}"}, 200),
        ({"If_None_Match": f'"{TAG}"'}, 200),
        ({"If_None_Match": ""}, 200),
        ({"If_Modified_Since": SINCE}, 304),
        ({"If_Modified_Since": AFTER}, 304),
        ({"If_Modified_Since": BEFORE}, 200),
        ({"If_Modified_Since": "yesterday"}, 200),
        ({"If_Modified_Since": f"{SINCE}, {SINCE}"}, 200),
        ({"If_None_Match": '"other"', "If_Modified_Since": SINCE}, 200),
        ({"If_None_Match": TAG, "If_Modified_Since": BEFORE}, 304),
        ({"If_Match": TAG}, 200),
        ({"If_Match": "*"}, 200),
        ({"If_Match": f'"a", {TAG}'}, 200),
        ({"If_Match": f"W/{TAG}"}, 412),
        ({"If_Match": f"w/{TAG}"}, 412),
        ({"If_Match": f"{TAG}x, {TAG}"}, 412),
        ({"If_Match": f'"a" {TAG}'}, 412),
        ({"If_Match": f',, "", W/{TAG}\t,{TAG} ,'}, 200),
        ({"If_Match": '"other"'}, 412),
        ({"If_Unmodified_Since": SINCE}, 200),
        ({"If_Unmodified_Since": BEFORE}, 412),
        ({"If_Unmodified_Since": "tomorrow"}, 200),
        ({"If_Match": TAG, "If_Unmodified_Since": BEFORE}, 200),
        ({"If_Match": '"other"', "If_None_Match": TAG}, 412),
        ({"If_Match": TAG, "If_None_Match": TAG}, 304),
        ({"If_Unmodified_Since": SINCE, "If_Modified_Since": SINCE}, 304),
    ],
    ids=show_headers,
)
def test_preconditions_are_evaluated_in_the_order_of_rfc_9110(
    site: Path, address: Address, headers: dict[str, str], status: int
) -> None:
    """Section 13.2.2. GET and HEAD are alike."""
    for method in ("GET", "HEAD"):
        response = get(address, "/1024", method, **replace_tag(headers, site / "1024"))
        assert response.status == status
        if status == 304:
            assert response.headers.keys() == {"ETag", "Cache-Control", "Last-Modified", "Date"}
            assert response.headers["ETag"] == etag_of(site / "1024")
        elif status == 200 and method == "GET":
            assert response.body == data(1024, seed=1024)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"If_None_Match": TAG}, 304),
        ({"If_Modified_Since": SINCE}, 304),
        ({"If_Unmodified_Since": BEFORE}, 412),
        ({"If_Range": TAG, "Range": "bytes=0-0"}, 206),
        ({"If_Range": SINCE, "Range": "bytes=0-0"}, 206),
    ],
    ids=show_headers,
)
def test_white_space_around_a_field_value_is_ignored(
    site: Path, address: Address, headers: dict[str, str], status: int
) -> None:
    """RFC 9112, section 5."""
    headers = replace_tag(headers, site / "1024")
    spaced = {name: f"\t{value} \t " for name, value in headers.items()}
    assert get(address, "/1024", **spaced).status == status


def test_304_has_no_body_and_further_responses_follow(site: Path, address: Address) -> None:
    request = b"GET /1024 HTTP/1.1\r\nHost: x\r\nIf-None-Match: %s\r\n\r\n"
    tag = etag_of(site / "1024").encode()
    raw = exchange(address, request % tag + request % b'"x"' + request % b"*")
    assert [response.status for response in split(raw)] == [304, 200, 304]


def test_missing_file_is_404_whatever_the_conditions(address: Address) -> None:
    assert get(address, "/nothing", If_None_Match="*", Range="bytes=0-1").status == 404


@pytest.mark.parametrize("modified", [None, MODIFIED, -1e9, 4e9, 2.0**33])
@pytest.mark.parametrize("age", [-1e6, -2.0, -0.5, 0.5, 2.0, 1e6])
def test_tag_is_weak_only_within_a_second_of_the_change_and_the_date_is_as_served(
    site: Path, monkeypatch: pytest.MonkeyPatch, age: float, modified: float | None
) -> None:
    """A program may have set any date; the clock may have been set back since the change."""
    (site / "new").write_bytes(b"new")
    if modified is not None:
        os.utime(site / "new", (modified, modified))
    status = (site / "new").stat()
    now = status.st_ctime + age
    monkeypatch.setattr("iobatch.httpd.files.time", lambda: now)
    with serving(site) as (_, address):
        headers = get(address, "/new").headers
        tag, date = headers["ETag"], headers.get("Last-Modified")
        weak = abs(age) < 1
        assert tag.startswith("W/") is weak
        assert get(address, "/new", If_None_Match=tag).status == 304
        assert get(address, "/new", If_Match=tag).status == (412 if weak else 200)
        range_status = 200 if weak else 206
        assert get(address, "/new", Range="bytes=0-0", If_Range=tag).status == range_status
        dated = http_date(date.encode()) if date else None
        if modified in (MODIFIED, -1e9):
            assert dated == max(modified, 0)
        else:
            changed = status.st_ctime_ns // 10**9
            assert dated == (changed if changed <= now else None)
        if date:
            assert get(address, "/new", If_Modified_Since=date).status == 304
            assert get(address, "/new", If_Unmodified_Since=date).status == 200
            assert get(address, "/new", Range="bytes=0-0", If_Range=date).status == range_status


def test_tag_tells_versions_apart_by_inode_size_and_times_and_reveals_no_inode() -> None:
    """A switched link may lead to another file of the same times. A mount may change st_dev.

    For the inode's number see CVE-2003-1418.
    """
    # In the order of os.stat_result: mode, inode, device, links, owner, group, size.
    basis = (0o100644, 123456, 10, 1, 0, 0, 4096, MODIFIED, MODIFIED, MODIFIED)

    def tag(position: int = 0, mtime_ns: int = 1, ctime_ns: int = 2) -> str:
        numbers = [number + (i == position > 0) for i, number in enumerate(basis)]
        times = {"st_mtime_ns": mtime_ns, "st_ctime_ns": ctime_ns}
        return file_tag(os.stat_result(numbers, times))

    assert len({tag(), tag(1), tag(6), tag(mtime_ns=3), tag(ctime_ns=3)}) == 5
    assert tag() == tag(2) == tag(3) == tag(7)
    assert "123456" not in tag()
    assert f"{123456:x}" not in tag()


@pytest.mark.parametrize("in_place", [False, True])
def test_replaced_file_of_the_same_size_and_date_has_another_tag(
    site: Path, *, in_place: bool
) -> None:
    """A reproducible build makes such files."""
    tags = set()
    for i in range(2):
        with serving(site) as (_, address):
            tags.add(get(address, "/1024").headers["ETag"])
        new = site / ("1024" if in_place else "new")
        while etag_of(site / "1024") in tags:  # until the file system's clock ticks
            new.write_bytes(data(1024, seed=i))
            os.utime(new, (MODIFIED, MODIFIED))
            new.rename(site / "1024")
    assert len(tags) == 2
    assert not any(tag.startswith("W/") for tag in tags)


def test_listing_has_a_tag_and_no_date(site: Path, address: Address) -> None:
    first = get(address, "/bare/")
    assert "Last-Modified" not in first.headers
    assert get(address, "/bare/", If_None_Match=first.headers["ETag"]).status == 304
    assert get(address, "/bare/", If_Modified_Since=formatdate(usegmt=True)).status == 200


@pytest.mark.parametrize(
    "date",
    [
        "Tue, 14 Nov 2023 22:13:20 GMT",
        "Tuesday, 14-Nov-23 22:13:20 GMT",
        "Tue Nov 14 22:13:20 2023",
    ],
)
def test_all_three_formats_of_a_date_are_parsed(date: str) -> None:
    """RFC 9110, section 5.6.7."""
    assert http_date(date.encode()) == MODIFIED


@pytest.mark.parametrize(
    "date", [b"", b"0", b"Tue, 14 Nov 2023 22:13:20 +0200", b"\xff", b"now" * 99]
)
def test_other_format_is_no_date(date: bytes) -> None:
    assert http_date(date) is None
