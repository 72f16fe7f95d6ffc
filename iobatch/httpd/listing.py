"""The listing of a directory, as HTML pages of at most 1000 entries."""

from __future__ import annotations

import re
from html import escape
from time import gmtime, strftime
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import parse_qs, quote_from_bytes

from iobatch.httpd.pages import PAGE_END, page_start

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

    from iobatch.httpd.entries import Directory, Entry

# The most entries on a page: browsers take a millisecond for each five.
PAGE = 1000

_STYLE = """\
h1 i { margin: 0 .35em; color: var(--soft); font-style: normal; font-weight: 400 }
bdi { white-space: pre-wrap }
table { width: 100%; border-collapse: collapse }
th { padding: 0; border-bottom: 1px solid var(--line); color: var(--soft); font-size: .85rem;
  font-weight: 500; text-align: left; white-space: nowrap }
th a { display: block; padding: .4rem .75rem; color: inherit }
th a:hover { color: var(--text); text-decoration: none }
th[aria-sort=ascending] a::after { content: " \\2191" }
th[aria-sort=descending] a::after { content: " \\2193" }
td { padding: .45rem .75rem; border-bottom: 1px solid var(--line) }
tbody tr:hover { background: var(--over) }
td:first-child { overflow-wrap: anywhere }
td:first-child a { display: flex; gap: .6rem }
td:first-child a::before { content: ""; flex: none; width: 1rem; margin-top: .25rem; height: 1rem;
  background: var(--soft); -webkit-mask: var(--icon) center / contain no-repeat;
  mask: var(--icon) center / contain no-repeat; --icon: url("data:image/svg+xml,\
%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E%3Cpath fill='none' \
stroke='%23000' stroke-width='1.3' d='M3.2 1.7h6l3.6 3.6v9H3.2zM9 1.7v3.8h3.8'/%3E%3C/svg%3E") }
.d td:first-child a::before { background: var(--folder); --icon: url("data:image/svg+xml,\
%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E%3Cpath \
d='M1 3.2c0-.6.4-1 1-1h4l1.6 1.9H14c.6 0 1 .4 1 1v7.7c0 .6-.4 1-1 1H2c-.6 0-1-.4-1-1z'\
/%3E%3C/svg%3E") }
.n { color: var(--soft); font-variant-numeric: tabular-nums; white-space: nowrap }
td.n:nth-child(2), th:nth-child(2) { text-align: right }
th:first-child { width: 100% }
nav { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; margin: .75rem; font-size: .85rem;
  color: var(--soft) }
@media (max-width: 36rem) {
  table, thead, tbody { display: block }
  thead tr { display: flex; border-bottom: 1px solid var(--line) }
  th { border: 0 }
  th:first-child { flex: 1 }
  tbody tr { display: grid; grid-template-columns: 1fr auto; padding: .55rem .75rem;
    border-bottom: 1px solid var(--line) }
  td { padding: 0; border: 0 }
  td:first-child { grid-column: 1 / 3 }
  td.n { font-size: .8rem; padding-left: 1.6rem }
  td.n:nth-child(2), th:nth-child(2) { order: 1 }
}
"""

# The columns, and their names in queries.
_COLUMNS = {"name": "Name", "size": "Size", "date": "Modified (UTC)"}
# The end of the year 9999, the last that gmtime and an HTML date can have.
_LAST = 253402300799
# Control characters and separators of lines would change how a name is shown. So would those that
# embed or override a direction: with U+202E, "gpj.exe" would look like "exe.jpg".
_UNPRINTABLE = re.compile("[\\0-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


class View(NamedTuple):
    """A page of a listing, and its order."""

    column: str = "name"
    descending: bool = False
    number: int = 1

    @property
    def address(self) -> str:
        """The URL of the view, relative to the directory."""
        parts: list[str] = []
        if self.descending or self.column != "name":
            parts.append(f"sort={'-' * self.descending}{self.column}")
        if self.number > 1:
            parts.append(f"page={self.number}")
        return "?" + "&".join(parts) if parts else "./"


def view_of(query: bytes) -> View:
    """Return the view that a query asks for, as View.address writes it; the first for any other."""
    fields = parse_qs(query.decode("latin-1").removeprefix("?"))
    order = fields.get("sort", [""])[-1]
    column = order.removeprefix("-")
    if column not in _COLUMNS:
        order = column = "name"
    number = fields.get("page", [""])[-1]
    # A number of more digits would take long to convert, and no listing has as many pages.
    known = re.fullmatch("[1-9][0-9]{0,8}", number)
    return View(column, order.startswith("-"), int(number) if known else 1)


def page(names: Sequence[bytes], directory: Directory, view: View) -> Generator[None, None, bytes]:
    """Make a page of a directory's listing in short steps.

    Args:
        names: of the directories from the root to this one.
        directory: what it contains.
        view: the page and its order. A page after the last is the last.

    """
    yield from directory.sort(view.column)
    count = len(directory.orders[view.column])
    last = max(1, -(-count // PAGE))
    view = view._replace(number=min(view.number, last))
    title = "/".join(("", *map(_text, names), ""))
    parts = [page_start(title, _STYLE), f"<h1>{_crumbs(names)}</h1>\n<main>\n"]
    if count:
        pages = _pages(view, last)
        parts += [pages, f"<table>\n<thead><tr>{_headings(view)}</tr></thead>\n<tbody>\n"]
        for each in _shown(directory, view):
            parts.append(_row(each))
            yield
        parts += ["</tbody>\n</table>\n", pages]
    parts.append(
        f"<p>{_summary(directory.folders, count, directory.size)}</p>\n</main>\n{PAGE_END}"
    )
    return "".join(parts).encode()


def readable(size: int) -> str:
    """Return a size in bytes with the unit that suits it."""
    if size < 1000:
        return f"{size} B"
    value, unit = float(size), ""
    for unit in "kMGTPE":  # noqa: B007  # the last one is used
        value /= 1000
        if value < 999.5:
            break
    return f"{value:.1f} {unit}B" if value < 9.95 else f"{value:.0f} {unit}B"


def _text(name: bytes) -> str:
    """Return a name as HTML text."""
    return escape(_UNPRINTABLE.sub("\ufffd", name.decode("utf-8", "replace")))


def _crumbs(names: Sequence[bytes]) -> str:
    """Return links to the directories from the root to this one."""
    links: list[str] = []
    for i, name in enumerate((b"Home", *names)):
        up = "../" * (len(names) - i)
        text = f"<bdi>{_text(name)}</bdi>"
        links.append(f'<a href="{up}">{text}</a>' if up else text)
    return "<i>/</i>".join(links)


def _shown(directory: Directory, view: View) -> Iterator[Entry]:
    """Yield the entries of a view."""
    entries, folders = directory.orders[view.column], directory.folders
    for i in range((view.number - 1) * PAGE, min(view.number * PAGE, len(entries))):
        if not view.descending:
            yield entries[i]
        else:  # directories are first in this order too; files have indexes from -1 downward
            yield entries[folders - 1 - i]


def _link(view: View, text: str, relation: str = "") -> str:
    return f'<a href="{escape(view.address)}"{relation}>{text}</a>'


def _headings(view: View) -> str:
    """Return the heading of each column: a link that sorts by it, and reverses the order."""
    cells: list[str] = []
    for column, text in _COLUMNS.items():
        mark, descending = "", False
        if column == view.column:
            mark = f' aria-sort="{"descending" if view.descending else "ascending"}"'
            descending = not view.descending
        cells.append(f"<th{mark}>{_link(View(column, descending), text)}</th>")
    return "".join(cells)


def _pages(view: View, last: int) -> str:
    """Return the links to other pages; nothing if there is one page."""
    if last == 1:
        return ""
    parts = [f"<span>Page {view.number} of {last}</span>"]
    if view.number > 1:
        parts.insert(0, _link(view._replace(number=view.number - 1), "Previous", ' rel="prev"'))
        parts.insert(0, _link(view._replace(number=1), "First"))
    if view.number < last:
        parts.append(_link(view._replace(number=view.number + 1), "Next", ' rel="next"'))
        parts.append(_link(view._replace(number=last), "Last"))
    return f"<nav>{' '.join(parts)}</nav>\n"


def _row(entry: Entry) -> str:
    """Return a row of the table."""
    # Reserved characters are quoted too: "a:b" would be a URL with a scheme.
    address = quote_from_bytes(entry.name, safe="")
    kind, slash, size = ("", "", readable(entry.size)) if entry.is_file else (' class="d"', "/", "")
    moment = gmtime(min(max(int(entry.modified), 0), _LAST))
    return (
        f'<tr{kind}><td><a href="{address}{slash}"><bdi>{_text(entry.name)}</bdi></a></td>'
        f'<td class="n">{size}</td><td class="n">'
        f'<time datetime="{strftime("%Y-%m-%dT%H:%M:%SZ", moment)}">'
        f"{strftime('%Y-%m-%d %H:%M', moment)}</time></td></tr>\n"
    )


def _summary(folders: int, count: int, size: int) -> str:
    """Return the number of folders and files, and the size of the files."""
    if not count:
        return "This folder is empty."
    files = count - folders
    parts: list[str] = []
    if folders:
        parts.append(f"{folders} folder{'s' * (folders != 1)}")
    if files:
        parts.append(f"{files} file{'s' * (files != 1)}, {readable(size)}")
    return ", ".join(parts)
