"""The listing of a directory, as an HTML page."""

from __future__ import annotations

import re
from html import escape
from time import gmtime, strftime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote_from_bytes

from attrs import define

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


@define(frozen=True)
class ListingEntry:
    """A file or directory in the listing."""

    name: bytes
    size: int
    modified: float
    is_directory: bool


_HEAD = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
:root { --text: #1f2328; --soft: #636c76; --line: #e3e6ea; --back: #fff; --over: #f3f5f8;
  --link: #0a58ca; --folder: #4c8fe0 }
@media (prefers-color-scheme: dark) { :root { --text: #e6e8eb; --soft: #9aa3ad; --line: #2d333b;
  --back: #15191e; --over: #1f252c; --link: #7ab3ff; --folder: #5a9bea } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 2rem 1rem 3rem; max-width: 60rem; color: var(--text);
  background: var(--back); font: 1rem/1.5 system-ui, sans-serif }
h1 { margin: 0 .75rem 1.25rem; font-size: 1.35rem; font-weight: 600; overflow-wrap: anywhere }
h1 i { margin: 0 .35em; color: var(--soft); font-style: normal; font-weight: 400 }
a { color: var(--link); text-decoration: none }
a:hover { text-decoration: underline }
table { width: 100%; border-collapse: collapse }
th { padding: 0; border-bottom: 1px solid var(--line); color: var(--soft); font-size: .85rem;
  font-weight: 500; text-align: left }
th > span, th > button { display: block; width: 100%; padding: .4rem .75rem }
th > button { border: 0; color: inherit; background: none; font: inherit; text-align: inherit;
  cursor: pointer }
th > button:hover { color: var(--text) }
th[aria-sort=ascending] > button::after { content: " \\2191" }
th[aria-sort=descending] > button::after { content: " \\2193" }
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
p { margin: 1rem .75rem; color: var(--soft); font-size: .85rem }
@media (max-width: 36rem) {
  body { padding-top: 1rem }
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
</style>
</head>
<body>
<h1>{crumbs}</h1>
<main>
"""

_TABLE = """\
<table>
<thead><tr><th><span>Name</span></th><th><span>Size</span></th><th><span>Modified</span></th></tr>
</thead>
<tbody>
"""

# Makes the headings buttons that sort. Without scripts the page is sorted by name, folders first.
_SCRIPT = """\
<script>
const heads = [...document.querySelectorAll("th")], body = document.querySelector("tbody");
const key = ({ cells }, column) => column ? Number(cells[column].dataset.v) : cells[0].textContent;
const byName = new Intl.Collator(undefined, { numeric: true });
heads.forEach((head, column) => {
  const button = document.createElement("button");
  button.append(head.textContent);
  head.replaceChildren(button);
  button.onclick = () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const compare = column ? (a, b) => a - b : byName.compare;
    const rows = [...body.rows].map(row => [row.className !== "d", key(row, column), row]);
    rows.sort((a, b) => a[0] - b[0] || (up ? 1 : -1) * compare(a[1], b[1]));
    body.append(...rows.map(each => each[2]));
  };
});
</script>
"""

# The end of the year 9999, the last that gmtime and an HTML date can have.
_LAST = 253402300799
# Control characters and separators of lines: they would change how a name is shown.
_UNPRINTABLE = re.compile("[\\0-\x1f\x7f-\x9f\u2028\u2029]")


def page(names: Sequence[bytes], entries: Iterable[ListingEntry]) -> bytes:
    """Return a directory's page.

    Args:
        names: of the directories from the root to this one.
        entries: the files and directories in it, in any order.

    """
    ordered = sorted(entries, key=lambda each: (not each.is_directory, _natural(each.name)))
    title = "/".join(("", *map(_text, names), ""))
    # str.format would read the style's braces as fields. One pass over both fields: a name may
    # contain "{crumbs}".
    fields = {"title": title, "crumbs": _crumbs(names)}
    parts = [re.sub(r"\{(title|crumbs)\}", lambda match: fields[match[1]], _HEAD)]
    if ordered:
        parts += [_TABLE, *map(_row, ordered), "</tbody>\n</table>\n"]
    parts.append(f"<p>{_summary(ordered)}</p>\n</main>\n")
    if ordered:
        parts.append(_SCRIPT)
    parts.append("</body>\n</html>\n")
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


def _natural(name: bytes) -> tuple[list[Any], bytes]:
    """Return the sort key of a name: numbers by value, letters regardless of case."""
    parts: list[Any] = re.split("([0-9]+)", name.decode("utf-8", "replace").casefold())
    parts[1::2] = [(int(number), number) for number in parts[1::2]]
    return parts, name


def _crumbs(names: Sequence[bytes]) -> str:
    """Return links to the directories from the root to this one."""
    links: list[str] = []
    for i, name in enumerate((b"Home", *names)):
        up = "../" * (len(names) - i)
        text = f"<bdi>{_text(name)}</bdi>"
        links.append(f'<a href="{up}">{text}</a>' if up else text)
    return "<i>/</i>".join(links)


def _row(entry: ListingEntry) -> str:
    """Return a row of the table."""
    # Reserved characters are quoted too: "a:b" would be a URL with a scheme.
    address = quote_from_bytes(entry.name, safe="")
    kind, slash, size, shown = "", "", entry.size, readable(entry.size)
    if entry.is_directory:
        kind, slash, size, shown = ' class="d"', "/", -1, ""
    seconds = min(max(int(entry.modified), 0), _LAST)
    moment = gmtime(seconds)
    return (
        f'<tr{kind}><td><a href="{address}{slash}"><bdi>{_text(entry.name)}</bdi></a></td>'
        f'<td class="n" data-v="{size}">{shown}</td>'
        f'<td class="n" data-v="{seconds}">'
        f'<time datetime="{strftime("%Y-%m-%dT%H:%M:%SZ", moment)}">'
        f"{strftime('%Y-%m-%d %H:%M', moment)}</time></td></tr>\n"
    )


def _summary(entries: Sequence[ListingEntry]) -> str:
    """Return the number of folders and files, and the size of the files."""
    if not entries:
        return "This folder is empty."
    folders = sum(each.is_directory for each in entries)
    files = len(entries) - folders
    parts: list[str] = []
    if folders:
        parts.append(f"{folders} folder{'s' * (folders != 1)}")
    if files:
        size = sum(each.size for each in entries if not each.is_directory)
        parts.append(f"{files} file{'s' * (files != 1)}, {readable(size)}")
    return ", ".join(parts)
