"""The listing of a directory as HTML."""

from __future__ import annotations

import re
from html import escape
from typing import TYPE_CHECKING

from iobatch.httpd.listingassets import SCRIPT, STYLE
from iobatch.httpd.pages import PAGE_END, page_start
from iobatch.httpd.views import COLUMNS, View, find_page

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from iobatch.httpd.entries import Directory, Entry

# Control characters and separators of lines would change how a name is shown. So would those that
# embed or override a direction: with U+202E, "gpj.exe" would look like "exe.jpg".
_UNPRINTABLE = re.compile("[\\0-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def html_page(
    names: Sequence[bytes], directory: Directory, view: View
) -> Generator[None, None, bytes]:
    """Make a page of a directory's listing in short steps.

    Args:
        names: of the directories from the root to this one.
        directory: what it contains.
        view: the page and its order. A page after the last is the last.

    """
    page = yield from find_page(directory, view)
    title = "/".join(("", *map(_text, names), ""))
    parts = [page_start(title, STYLE), f"<h1>{_crumbs(names)}</h1>\n<main>\n"]
    count = directory.count
    if count:
        pages = _pages(page.view, page.last)
        parts += [
            _filter(page.last),
            pages,
            f"<table>\n<thead><tr>{_headings(page.view)}</tr></thead>\n<tbody>\n",
        ]
        for each in page.entries:
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


def _filter(last: int) -> str:
    """Return the box that filters the rows by name, and the script that shows and serves it."""
    label = "Filter" if last == 1 else "Filter this page"
    return (
        f'<div role="search" hidden><input type="search" aria-label="{label}" '
        f'placeholder="{label}" autocomplete="off" spellcheck="false"> '
        f'<span aria-live="polite"></span></div>\n<script>\n{SCRIPT}</script>\n'
    )


def _link(view: View, text: str, relation: str = "") -> str:
    return f'<a href="{escape(view.address)}"{relation}>{text}</a>'


def _headings(view: View) -> str:
    """Return the heading of each column: a link that sorts by it, and reverses the order."""
    cells: list[str] = []
    for column, text in zip(COLUMNS, ("Name", "Size", "Modified (UTC)"), strict=True):
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
    kind, size = ("", readable(entry.size)) if entry.is_file else (' class="d"', "")
    timestamp = entry.timestamp
    date, minute = timestamp[:10], timestamp[11:16]
    return (
        f'<tr{kind}><td><a href="{entry.href}"><bdi>{_text(entry.name)}</bdi></a></td>'
        f'<td class="n">{size}</td>'
        f'<td class="n"><time datetime="{timestamp}">{date} {minute}</time></td></tr>\n'
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
