"""Hidden names: files and directories that are neither served nor listed."""

from __future__ import annotations


def is_hidden(name: bytes) -> bool:
    """Return whether a file's or directory's name hides it.

    Names that begin with a dot do, except ".well-known", which exists to be found (RFC 8615). A
    symbolic link with a visible name is served even if its target is hidden: whoever made the link
    made it visible.
    """
    return name.startswith(b".") and name != b".well-known"
