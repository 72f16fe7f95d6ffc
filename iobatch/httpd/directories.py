"""The listings of directories: made in slices between requests, and shared by their readers."""

from __future__ import annotations

from copy import copy
from time import monotonic
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from attrs import define, field

from iobatch.httpd.codings import CODINGS, MIN_CODED
from iobatch.httpd.conditions import content_tag
from iobatch.httpd.entries import Directory, read_directory
from iobatch.httpd.files import ServedFile, in_memory
from iobatch.httpd.listing import html_page
from iobatch.httpd.listingjson import json_page
from iobatch.httpd.views import HTML, JSON

if TYPE_CHECKING:
    from collections.abc import Generator

    from iobatch.httpd.views import View
    from iobatch.httpd.walk import Root

# Seconds for which a listing is used again, at least.
FRESH = 1.0
# A listing is also used again for this multiple of the time that it took: clients that ask for it
# in a loop get a fifth of the server's time.
REUSE = 4
# Seconds of work on a listing before the connections that are ready run.
SLICE = 0.002
# The most listings that are kept, and the most pages of each.
MAX_LISTINGS = 32
MAX_PAGES = 8
# Bytes that are compressed in one step: that takes about a millisecond.
STEP = 32 * 1024
# The function that makes a page in each form.
_PAGES = {HTML: html_page, JSON: json_page}

Names = tuple[bytes, ...]


@define(eq=False)
class _Listing:
    """A directory's entries, and pages that show them."""

    directory: Directory
    # Why the directory could not be read; None: it was.
    error: Exception | None = None
    # Until when it is used (time.monotonic); 0: it is being made.
    fresh_until: float = field(init=False, default=0.0)
    pages: dict[View, ServedFile] = field(init=False, factory=dict["View", ServedFile])


@define(eq=False)
class _Build:
    """The work on a page, and on its listing where that isn't made."""

    steps: Generator[None, None, _Listing]
    # Seconds of work.
    spent: float = field(init=False, default=0.0)


@define(eq=False)
class Listings:
    """The listings of the directories below a root.

    A page is made in slices, because the work on a large directory takes longer than other clients
    may wait. All requests for a directory wait for the same work. All readers of equal pages share
    one, however slowly they read.
    """

    _root: Root
    # Pages exist in each content coding too.
    _compress: bool
    # At most one for each directory.
    builds: dict[Names, _Build] = field(init=False, factory=dict[Names, _Build])
    _made: dict[Names, _Listing] = field(init=False, factory=dict[Names, _Listing])
    # All pages that a connection or a listing refers to, by their tags, which depend on every byte.
    _shared: WeakValueDictionary[str, ServedFile] = field(
        init=False, factory=WeakValueDictionary[str, ServedFile]
    )

    def __len__(self) -> int:
        return len(self._made)

    def clear(self) -> None:
        """Drop the listings and unfinished builds."""
        self.builds.clear()
        self._made.clear()

    def sweep(self, now: float) -> None:
        """Drop the listings that are no longer fresh.

        Args:
            now: time.monotonic().

        """
        for names in [names for names, each in self._made.items() if each.fresh_until <= now]:
            del self._made[names]

    def get(self, names: Names, view: View, now: float) -> ServedFile | None:
        """Return a page of a directory's listing; None: `build` must make it first.

        Args:
            names: the path's decoded names.
            view: the page.
            now: time.monotonic().

        Raises:
            OSError: the directory can't be read.

        """
        listing = self._made.get(names)
        if listing is not None and listing.fresh_until <= now:
            listing = None
        if listing is not None:
            if listing.error is not None:
                raise copy(listing.error)
            # Clients may ask for any number of pages that don't exist.
            view = view.within(listing.directory.count)
            if view in listing.pages:
                return listing.pages[view]
        if names not in self.builds:
            self.builds[names] = _Build(self._steps(names, view, listing))
        return None

    def build(self, now: float) -> Names | None:
        """Work on a page for SLICE seconds; return its directory if it is made.

        Args:
            now: time.monotonic().

        """
        names = next(iter(self.builds))
        build = self.builds.pop(names)
        begun = monotonic()
        try:
            while monotonic() < begun + SLICE:
                next(build.steps)
        except StopIteration as exc:
            listing: _Listing = exc.value
        except Exception as exc:  # noqa: BLE001  # get() raises it to those who wait
            listing = _Listing(Directory(), exc.with_traceback(None))
        else:
            build.spent += monotonic() - begun
            self.builds[names] = build  # the last: the other builds come first
            return None
        if not listing.fresh_until:
            build.spent += monotonic() - begun
            listing.fresh_until = now + max(FRESH, REUSE * build.spent)
        self._made.pop(names, None)
        _make_room(self._made, MAX_LISTINGS)
        self._made[names] = listing
        return names

    def _steps(
        self, names: Names, view: View, listing: _Listing | None
    ) -> Generator[None, None, _Listing]:
        if listing is None:
            listing = _Listing((yield from read_directory(self._root, names)))
        view = view.within(listing.directory.count)
        content = yield from _PAGES[view.content_type](names, listing.directory, view)
        made = self._in_memory(content, view)
        if self._compress and len(content) >= MIN_CODED:
            for coding, new_coder in CODINGS.items():
                coder = new_coder()
                parts: list[bytes] = []
                for start in range(0, len(content), STEP):
                    parts.append(bytes(coder.compress(content[start : start + STEP])))
                    yield
                coded = self._in_memory(b"".join((*parts, coder.flush())), view, coding)
                made.siblings[coding] = coded
        _make_room(listing.pages, MAX_PAGES)
        listing.pages[view] = made
        return listing

    def _in_memory(self, content: bytes, view: View, coding: str = "") -> ServedFile:
        """Return a file in memory; if one with this content is in use, return that one."""
        tag = content_tag(content)
        file = self._shared.get(tag)
        if file is None:
            file = in_memory(content, tag, view.content_type, coding=coding)
            file.vary = "Accept, Accept-Encoding" if self._compress else "Accept"
            self._shared[tag] = file
        return file


def _make_room(kept: dict[Any, Any], limit: int) -> None:
    """Drop the oldest of what is kept, if it has reached a limit."""
    if len(kept) >= limit:
        del kept[next(iter(kept))]
