"""The cache of open files."""

from __future__ import annotations

import errno
from contextlib import suppress
from http import HTTPStatus
from types import MappingProxyType
from typing import TYPE_CHECKING
from urllib.parse import quote_from_bytes

from attrs import define, field

from iobatch.httpd.directories import Listings
from iobatch.httpd.targets import split_path, split_target
from iobatch.httpd.views import view_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from iobatch.httpd.files import Files, ServedFile

# Seconds for which an open file is used again without another walk to it.
FRESH = 1.0
# The most files that the cache keeps open.
MAX_OPEN = 256


@define(eq=False)
class FileCache:
    """The files that were requested last, open.

    Before each use the open file is examined, so that one that has been changed, replaced or
    deleted is not used again. After FRESH seconds a path is walked and its file opened anew: by
    then a switched link or a directory that is replaced has its effect. A file that is overwritten
    while it is sent may be sent with bytes of both, as by any server.
    """

    _files: Files
    # The names of the file that answers requests for pages that are not there; empty: there is
    # none.
    page: Sequence[bytes] = ()
    listings: Listings = field(init=False)
    # Files and when each stops being fresh (time.monotonic), oldest first. The keys are the paths
    # in their usual spelling: a file has one entry, however clients spell its path. Fallbacks have
    # entries of their own; None: there is no such file.
    _cache: dict[bytes, tuple[ServedFile | None, float]] = field(
        init=False, factory=dict[bytes, tuple["ServedFile | None", float]]
    )

    def __attrs_post_init__(self) -> None:
        self.listings = Listings(self._files.root, self._files.compress)

    def close(self) -> None:
        """Close the files that no batch refers to."""
        self._cache.clear()
        self.listings.clear()

    def __len__(self) -> int:
        return len(self._cache) + len(self.listings)

    def sweep(self, now: float) -> None:
        """Drop the files that are no longer fresh.

        Args:
            now: time.monotonic().

        """
        cache = self._cache
        stale: list[bytes] = []
        for key, (_, fresh_until) in cache.items():
            if fresh_until > now:
                break
            stale.append(key)
        for key in stale:
            del cache[key]
        self.listings.sweep(now)

    def get(
        self, target: bytes, now: float, headers: Mapping[bytes, bytes] = MappingProxyType({})
    ) -> ServedFile | None:
        """Return the file for a request target; None: its listing must be made first.

        Args:
            target: as it stands in the request line.
            now: time.monotonic().
            headers: the request's, which decide the form of a listing.

        Raises:
            OSError: there is no such file, or it must not be served; EINVAL: the target is not a
                path.
            IsADirectoryError: the target leads to a directory, and does not end with a slash.

        """
        file = self._fresh(target, now)
        if file is None:
            path, query = split_target(target)
            names = split_path(path)
            key = quote_from_bytes(b"/".join((b"", *names))).encode()
            file = self._fresh(key, now)
            if file is None:
                file = self._open(names)
                if file is None:
                    view = view_of(query, headers.get(b"accept", b""))
                    return self.listings.get(tuple(names[:-1]), view, now)
                self._keep(key, file, now)
        return file

    def get_fallback(self, names: Sequence[bytes], status: int, now: float) -> ServedFile | None:
        """Return the file to send in place of what is not there; None: it is not there either.

        That the page of a 404 is missing is remembered while a file would be fresh: each 404 would
        walk to it.

        Args:
            names: of the file.
            status: of the responses that send it.
            now: time.monotonic().

        """
        key = b"%d /%s" % (status, b"/".join(names))  # a blank is in no target
        file, fresh_until = self._cache.get(key, (None, 0.0))
        if fresh_until > now and (file is None or file.is_current()):
            return file
        file = None
        with suppress(OSError):
            file = self._open(names)
        if file is not None:
            for each in (file, *file.siblings.values()):
                each.status = status
                if status == HTTPStatus.OK:
                    each.vary = ", ".join(filter(None, ("Accept", each.vary)))
        if file is not None or status == HTTPStatus.NOT_FOUND:
            self._keep(key, file, now)
        return file

    def _keep(self, key: bytes, file: ServedFile | None, now: float) -> None:
        self._cache.pop(key, None)
        if len(self._cache) >= MAX_OPEN:
            del self._cache[next(iter(self._cache))]
        self._cache[key] = file, now + FRESH

    def _fresh(self, key: bytes, now: float) -> ServedFile | None:
        file, fresh_until = self._cache.get(key, (None, 0.0))
        return file if file is not None and fresh_until > now and file.is_current() else None

    def _open(self, names: Sequence[bytes]) -> ServedFile | None:
        try:
            return self._files.open(names)
        except OSError as exc:
            if exc.errno not in {errno.EMFILE, errno.ENFILE}:
                raise
        # What is kept holds descriptors.
        self._cache.clear()
        self.listings.clear()
        return self._files.open(names)
