"""The listing of a directory as JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from iobatch.httpd.views import find_page

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from iobatch.httpd.entries import Directory, Entry
    from iobatch.httpd.views import View


def json_page(
    names: Sequence[bytes], directory: Directory, view: View
) -> Generator[None, None, bytes]:
    """Make a page of a directory's listing in short steps. Arguments: as for html_page."""
    page = yield from find_page(directory, view)
    number, last = page.view.number, page.last
    entries: list[dict[str, Any]] = []
    for each in page.entries:
        entries.append(_object(each))
        yield
    content = {
        "path": _text(b"/".join((b"", *names, b""))),
        "page": number,
        "pages": last,
        "next": page.view._replace(number=number + 1).address if number < last else None,
        "entries": entries,
    }
    return json.dumps(content, ensure_ascii=False).encode() + b"\n"


def _object(entry: Entry) -> dict[str, Any]:
    found: dict[str, Any] = {"name": _text(entry.name), "href": entry.href}
    if entry.is_file:
        found |= {"type": "file", "size": entry.size}
    else:
        found |= {"type": "directory"}
    return {**found, "modified": entry.timestamp}


def _text(name: bytes) -> str:
    return name.decode("utf-8", "replace")
