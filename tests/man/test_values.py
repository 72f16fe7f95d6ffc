"""Values in the pages: constants, attributes, statuses, error codes."""

from __future__ import annotations

import errno
import re

import iobatch
from iobatch import aio
from iobatch.aio import WriteStatus
from tests.support.manpages import PAGES, section, table

SIZES = {"": 1, "KiB": 1024, "MiB": 1024 * 1024}


def test_each_constant_has_the_same_value_in_the_pages_and_the_package() -> None:
    """A page gives a value in brackets after the name; each number has one somewhere."""
    values: dict[str, set[int]] = {}
    for page in PAGES:
        found = re.findall(r"Dv (\w+) Pq (?:\\)?(-?\d+)(?: ([KM]iB))?", page.read_text())
        for name, number, unit in found:
            values.setdefault(name, set()).add(int(number) * SIZES[unit])
    constants = [name for name in iobatch.__all__ if type(getattr(iobatch, name)) is int]
    assert values == {name: {getattr(iobatch, name)} for name in constants}


def test_overview_lists_each_attribute_of_truncated_file_error() -> None:
    attributes = vars(iobatch.TruncatedFileError(3, 4, 5))
    assert attributes
    lines = section("iobatch.7", "Truncated files")
    assert [line.split()[-1] for line in lines if line.startswith(".It Va ")] == [*attributes]


def test_page_of_operations_lists_each_status_and_each_kind_of_cancellation() -> None:
    lines = section("WriteOperation.3", "DESCRIPTION")
    listed = [line.removeprefix(".It ") for line in lines if re.match(r"\.It [A-Z]+$", line)]
    assert listed == [*WriteStatus.__members__, *aio.CancellationType.__members__]


def test_table_of_winsock_pairs_each_errno_with_the_exception_that_python_raises() -> None:
    """An errno determines the subclass of OSError. WSASend documents twenty codes.

    WSASendTo documents five more.
    """
    _header, *rows = table("iobatch-winsock.7", "Error codes")
    assert len({code for code, _ in rows}) == len(rows) == 25
    for _, meaning in rows:
        pairs = re.findall(r"\b(\w+) \((E[A-Z]+)\)", meaning)
        assert [name for _, name in pairs] == re.findall(r"\bE[A-Z]{3,}\b", meaning)
        for exception, name in pairs:
            assert exception == type(OSError(getattr(errno, name), "text")).__name__
        for status in re.findall(r"status ([A-Z]+)", meaning):
            assert status in WriteStatus.__members__
