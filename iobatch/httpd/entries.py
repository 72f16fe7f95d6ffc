"""The entries of a directory, read and sorted in short steps."""

from __future__ import annotations

import errno
import heapq
import os
import re
from contextlib import suppress
from stat import S_ISDIR, S_ISREG
from time import gmtime, strftime
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote_from_bytes

from attrs import define, field

from iobatch.httpd.errors import close_descriptor, os_error

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from iobatch.httpd.walk import Root

# Sorting this number of entries takes a millisecond. One call that sorts a large directory would
# take a hundred times as long, and nothing else could run meanwhile.
RUN = 500
# The end of the year 9999, the last that gmtime and an HTML date can have.
_LAST = 253402300799
_NUMBER = re.compile("[0-9]+")


class Entry(NamedTuple):
    """A file or directory in a listing."""

    is_file: bool
    name: bytes
    size: int
    modified: float

    @property
    def href(self) -> str:
        """The URL, relative to the directory."""
        # Reserved characters are quoted too: "a:b" would be a URL with a scheme.
        return quote_from_bytes(self.name, safe="") + ("" if self.is_file else "/")

    @property
    def timestamp(self) -> str:
        """The time of the last change in UTC, as in RFC 3339."""
        return strftime("%Y-%m-%dT%H:%M:%SZ", gmtime(min(max(int(self.modified), 0), _LAST)))


@define(eq=False)
class Directory:
    """The entries of a directory at some time, directories first."""

    # Ascending, by the column that they are sorted by. The others are added when they are asked
    # for.
    orders: dict[str, list[Entry]] = field(init=False, factory=dict[str, "list[Entry]"])
    folders: int = field(init=False, default=0)
    # Of all files.
    size: int = field(init=False, default=0)

    @property
    def count(self) -> int:
        """The number of entries."""
        return len(self.orders["name"])

    def sort(self, column: str) -> Generator[None, None, None]:
        """Add an order."""
        if column not in self.orders:
            entries = self.orders["name"]
            self.orders[column] = yield from _in_order(entries, _KEYS[column])


def read_directory(root: Root, names: Sequence[bytes]) -> Generator[None, None, Directory]:
    """Read the directory at a path, and sort it by name.

    What is not served is left out, and so is what can't be examined.

    Args:
        root: the served directory.
        names: the path's decoded names.

    Raises:
        OSError: the directory can't be read.

    """
    with root.walk(names) as place:
        fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=place.fd)
    directory = Directory()
    entries: list[Entry] = []
    try:
        with os.scandir(fd) as found:
            for each in found:
                name = os.fsencode(each.name)
                if not root.hides(name):
                    with suppress(OSError):
                        entry = _entry(root, [*names, name], each)
                        entries.append(entry)
                        directory.folders += not entry.is_file
                        directory.size += entry.size
                yield
    finally:
        close_descriptor(fd)
    directory.orders["name"] = yield from _in_order(entries, _KEYS["name"])
    return directory


def _entry(root: Root, names: Sequence[bytes], found: os.DirEntry[str]) -> Entry:
    """Return the entry for a file or directory, or for what a link leads to.

    Raises:
        OSError: it is not served.

    """
    if found.is_symlink():
        with root.walk(names) as place:
            status = os.fstat(place.fd)
    else:
        status = found.stat(follow_symlinks=False)
    if S_ISDIR(status.st_mode):
        # What the size of a directory means depends on the file system.
        return Entry(is_file=False, name=names[-1], size=0, modified=status.st_mtime)
    if not S_ISREG(status.st_mode):
        raise os_error(errno.EACCES)
    return Entry(is_file=True, name=names[-1], size=status.st_size, modified=status.st_mtime)


def _in_order(
    entries: Sequence[Entry], key: Callable[[Entry], Any]
) -> Generator[None, None, list[Entry]]:
    """Return entries sorted by a key. Equal ones keep their order."""
    runs: list[list[Entry]] = []
    for start in range(0, len(entries), RUN):
        runs.append(sorted(entries[start : start + RUN], key=key))
        yield
    merged: list[Entry] = []
    for each in heapq.merge(*runs, key=key):
        merged.append(each)
        yield
    return merged


def _by_name(entry: Entry) -> tuple[bool, str, bytes]:
    """Return the key by which numbers in names sort by value, and letters regardless of case."""
    text = entry.name.decode("utf-8", "replace").casefold()
    return entry.is_file, _NUMBER.sub(_by_value, text), entry.name


def _by_value(number: re.Match[str]) -> str:
    """Return a number in a form that sorts by value: its length is first.

    No name has the zero byte before it, so a number sorts before all other characters.
    """
    digits = number[0].lstrip("0")
    return f"\0{chr(len(digits))}{digits}"


# By column.
_KEYS: dict[str, Callable[[Entry], Any]] = {
    "name": _by_name,
    "size": lambda entry: (entry.is_file, entry.size),
    "date": lambda entry: (entry.is_file, entry.modified),
}
