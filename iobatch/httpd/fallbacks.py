"""Fallbacks: the files that are sent in place of what is not there."""

from __future__ import annotations

import errno
import os
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote_from_bytes

from iobatch.httpd.errors import status_of
from iobatch.httpd.targets import split_path, split_target
from iobatch.httpd.weights import media_type_weight

if TYPE_CHECKING:
    from collections.abc import Sequence

    from iobatch.httpd.cache import FileCache
    from iobatch.httpd.files import Files, ServedFile
    from iobatch.httpd.requests import Request

# The names of the file that is the body of every 404.
NOT_FOUND_PAGE = (b"404.html",)


def page_names(files: Files, path: str) -> Sequence[bytes]:
    """Return the names of the file that answers requests for pages that are not there.

    Args:
        files: the served files.
        path: of the file, below the root.

    Raises:
        OSError: it is no file that is served.

    """
    try:
        names = split_path(quote_from_bytes(os.fsencode(path)).encode())
        if not names[-1]:
            raise IsADirectoryError
        files.open(names)
    except OSError as exc:
        # An option with an optional argument takes the directory that follows it.
        if isinstance(exc, IsADirectoryError) or Path(path).is_dir():
            advice = "put the directory to serve before --spa, or write --spa=FILE"
            raise OSError(errno.EISDIR, f"it is a directory: {advice}") from None
        raise
    return names


def find_fallback(
    files: FileCache, request: Request, error: OSError, now: float
) -> ServedFile | None:
    """Return the file to send in place of the one that a request asks for; None: there is none.

    Args:
        files: the cache of open files.
        request: a GET or HEAD.
        error: why its file can't be opened.
        now: time.monotonic().

    """
    if status_of(error) != HTTPStatus.NOT_FOUND:
        return None
    file = None
    if files.page and _asks_for_page(request):
        file = files.get_fallback(files.page, HTTPStatus.OK, now)
    return file or files.get_fallback(NOT_FOUND_PAGE, HTTPStatus.NOT_FOUND, now)


def _asks_for_page(request: Request) -> bool:
    """Return whether the client takes HTML, and the path doesn't end with a suffix."""
    path, _ = split_target(request.target)
    accept = request.headers.get(b"accept", b"*/*")
    return b"." not in split_path(path)[-1] and media_type_weight(accept, "text/html") > 0
