"""Media types, by the names of files."""

from __future__ import annotations

import os
from mimetypes import guess_type

# A compressed file is served as the archive that it is: with the type of its content and a
# Content-Encoding, clients would unpack it.
_TYPE_OF_ENCODING = {
    "br": "application/x-brotli",
    "bzip2": "application/x-bzip2",
    "compress": "application/x-compress",
    "gzip": "application/gzip",
    "xz": "application/x-xz",
}


def content_type(name: bytes) -> str:
    """Return the Content-Type for a file's name."""
    # Without the slash, guess_type would parse "a:b" as a URL.
    media_type, encoding = guess_type("/" + os.fsdecode(name), strict=False)
    if encoding is not None:
        return _TYPE_OF_ENCODING.get(encoding, "application/octet-stream")
    if media_type is None:
        return "application/octet-stream"
    return f"{media_type}; charset=utf-8" if media_type.startswith("text/") else media_type
