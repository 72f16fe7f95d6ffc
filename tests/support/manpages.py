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
    source = "\n".join(section(page, title))
    body = source.partition(".TS\n")[2].partition("\n.TE")[0]
    # tbl(1): T{ and T} enclose a cell of whole lines.
    cell = re.compile(r"T\{\n(.*?)\nT\}", re.DOTALL)
    body = cell.sub(lambda found: found[1].replace("\n", " "), body)
    _layout, *rows = _unescape(body).splitlines()
    return [row.split("\t") for row in rows]


def departures() -> list[str]:
    """Return the subjects of the table of departures in iobatch(7), as in the names of tests."""
    _header, *rows = table("iobatch.7", "Departures from libowfat")
    return [
        re.sub(r"\W+", "_", subject.replace("-1", "minus_1")).strip("_").lower()
        for subject, _libowfat, _iobatch in rows
    ]


def covered_departures(module: dict[str, Any]) -> list[str]:
    """Return the subjects that a module's tests begin with, in the tests' order.

    A test without a row stands for itself, so that a comparison shows it. The first test is left
    out: it compares.
    """
    _compares, *tests = [name for name in module if name.startswith("test_")]
    subjects = departures()
    return [
        next((subject for subject in subjects if test.startswith(f"test_{subject}_")), test)
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


def _unescape(source: str) -> str:
    """Replace the roff escapes that the pages use."""
    for escape, character in ((r"\-", "-"), (r"\(dq", '"'), (r"\e", "\\")):
        source = source.replace(escape, character)
    return source
