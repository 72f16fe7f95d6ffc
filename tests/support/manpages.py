"""Man pages as data: their sections, tables, code and examples."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from tests.support.programs import ROOT
from tests.support.sockets import PATIENCE, receive_all, stream_pair

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from pathlib import Path

MAN = ROOT / "man"
# The names of libowfat's functions are symbolic links to the pages of what replaces them.
LINKS = sorted(each for each in MAN.glob("man*/*") if each.is_symlink())
PAGES = sorted({*MAN.glob("man*/*")} - {*LINKS})


def path(page: str) -> Path:
    """Return the path of a page, which is in the folder of its section."""
    return MAN / f"man{page[-1]}" / page


def section(page: str, title: str) -> list[str]:
    """Return the source lines of a section or subsection of a page."""
    lines = path(page).read_text().splitlines()
    heading = next(line for line in lines if line in {f".Sh {title}", f".Ss {title}"})
    ends = (".Sh ", heading[:4])
    after = lines[lines.index(heading) + 1 :]
    return list(takewhile(lambda line: not line.startswith(ends), after))


def table(page: str, title: str) -> list[list[str]]:
    """Return the rows of the first table in a section or subsection, each as a list of cells."""
    return _tables(section(page, title))[0]


def subjects(page: str, *titles: str) -> list[str]:
    """Return the first cells of a page's tables, as in the names of tests.

    With titles, only those of these sections or subsections. The first row of a table is its
    header. A row whose second cell begins with "none" is left out.
    """
    lines = path(page).read_text().splitlines()
    if titles:
        lines = [line for title in titles for line in section(page, title)]
    return [
        _slug(subject)
        for _header, *rows in _tables(lines)
        for subject, answer, *_ in rows
        if not answer.startswith("none")
    ]


def covered(module: dict[str, Any], page: str, *titles: str) -> list[str]:
    """Return the subjects that a module's tests begin with, in the tests' order.

    A test without a row stands for itself, so that a comparison shows it. The first test is left
    out: it compares.
    """
    _compares, *tests = [name for name in module if name.startswith("test_")]
    # iob_addbuf_free before iob_addbuf
    longest_first = sorted(subjects(page, *titles), key=len, reverse=True)
    return [
        next((each for each in longest_first if test.startswith(f"test_{each}_")), test)
        for test in tests
    ]


def code(page: str, title: str) -> str:
    """Return the Python code in a section's literal displays, as a reader sees it."""
    shown = []
    literal = False
    for line in section(page, title):
        if line.startswith("."):
            literal = line.startswith(".Bd -literal")
        elif literal:
            shown.append(_unescape(line))
    return "\n".join(shown) + "\n"


def example(page: str) -> dict[str, Any]:
    """Run the code under EXAMPLES, and return the names that it defines."""
    namespace: dict[str, Any] = {}
    exec(code(page, "EXAMPLES"), namespace)
    return namespace


def sent(
    send: Callable[[socket.socket], object],
    receive: Callable[[socket.socket], bytes] = receive_all,
) -> bytes:
    """Call `send` with a socket, and return the bytes that arrive at its peer."""
    with stream_pair(buffers=4096) as (ours, theirs), ThreadPoolExecutor(1) as pool:
        arrived = pool.submit(receive, theirs)
        try:
            send(ours)
        finally:
            ours.close()
        return arrived.result(PATIENCE)


def _tables(lines: list[str]) -> list[list[list[str]]]:
    """Return the rows of each table in source lines."""
    source = "\n".join(lines) + "\n"
    # tbl(1): T{ and T} enclose a cell of whole lines.
    cell = re.compile(r"T\{\n(.*?)\nT\}", re.DOTALL)
    source = cell.sub(lambda found: found[1].replace("\n", " "), source)
    found = []
    for body in re.findall(r"^\.TS\n(.*?)^\.TE$", source, re.DOTALL | re.MULTILINE):
        _layout, _, data = body.partition(".\n")
        rows = [row for row in _unescape(data).splitlines() if row not in {"_", "="}]
        found.append([row.split("\t") for row in rows])
    return found


def _slug(subject: str) -> str:
    """Return a table's cell as a part of a function's name."""
    return re.sub(r"\W+", "_", re.sub(r"(?<!\w)-(?=\d)", "minus_", subject)).strip("_").lower()


def _unescape(source: str) -> str:
    """Replace the roff escapes that the pages use."""
    for escape, character in ((r"\-", "-"), (r"\(dq", '"'), (r"\e", "\\")):
        source = source.replace(escape, character)
    return source
