"""The views of a listing: pages of at most 1000 entries, in an order, as HTML or JSON."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import parse_qs

from iobatch.httpd.weights import media_type_weight, weights

if TYPE_CHECKING:
    from collections.abc import Generator

    from iobatch.httpd.entries import Directory, Entry

# The most entries on a page: browsers take a millisecond for each five.
PAGE = 1000
# The columns, by which entries are sorted.
COLUMNS = ("name", "size", "date")
# The forms of a page.
HTML = "text/html; charset=utf-8"
JSON = "application/json"


class View(NamedTuple):
    """A page of a listing, its order and its form."""

    column: str = "name"
    descending: bool = False
    number: int = 1
    content_type: str = HTML

    @property
    def address(self) -> str:
        """The URL of the view, relative to the directory. It is the same in each form."""
        parts: list[str] = []
        if self.descending or self.column != "name":
            parts.append(f"sort={'-' * self.descending}{self.column}")
        if self.number > 1:
            parts.append(f"page={self.number}")
        return "?" + "&".join(parts) if parts else "./"

    def within(self, count: int) -> View:
        """Return the view of a number of entries: its last page if this page is after it."""
        return self._replace(number=min(self.number, _last_page(count)))


def _last_page(count: int) -> int:
    return max(1, -(-count // PAGE))


class Page(NamedTuple):
    """What a view shows."""

    # Its page exists.
    view: View
    # The number of pages in this order.
    last: int
    entries: list[Entry]


def view_of(query: bytes, accept: bytes) -> View:
    """Return the view that a request asks for.

    Args:
        query: as View.address writes it. Any other asks for the first page.
        accept: the Accept field.

    """
    fields = parse_qs(query.decode("latin-1").removeprefix("?"))
    order = fields.get("sort", [""])[-1]
    column = order.removeprefix("-")
    if column not in COLUMNS:
        order = column = "name"
    number = fields.get("page", [""])[-1]
    # A number of more digits would take long to convert, and no listing has as many pages.
    known = re.fullmatch("[1-9][0-9]{0,8}", number)
    content_type = JSON if _prefers_json(accept) else HTML
    return View(column, order.startswith("-"), int(number) if known else 1, content_type)


@lru_cache(maxsize=64)
def _prefers_json(accept: bytes) -> bool:
    found = weights(accept)
    json, html = (media_type_weight(accept, each) for each in ("application/json", "text/html"))
    # Scripts' libraries name JSON, and add */* with the same weight.
    only_json_is_named = "application/json" in found and "text/html" not in found
    return json > html or (json == html > 0 and only_json_is_named)


def find_page(directory: Directory, view: View) -> Generator[None, None, Page]:
    """Find the entries of a view in short steps. A page after the last is the last."""
    yield from directory.sort(view.column)
    entries, folders = directory.orders[view.column], directory.folders
    last, view = _last_page(len(entries)), view.within(len(entries))
    indexes = range((view.number - 1) * PAGE, min(view.number * PAGE, len(entries)))
    if view.descending:
        # Directories are first in this order too. Files have indexes from -1 downward.
        return Page(view, last, [entries[folders - 1 - i] for i in indexes])
    return Page(view, last, [entries[i] for i in indexes])
