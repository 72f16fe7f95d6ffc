"""Control characters in text of the command line that header fields carry."""

from __future__ import annotations

import re

# With what stands for bytes of the command line that are not UTF-8.
_CONTROLS = re.compile("[\0-\x1f\x7f-\x9f\ud800-\udfff]")


def has_controls(text: str) -> bool:
    """Return whether a text has a control character, or is not UTF-8."""
    return _CONTROLS.search(text) is not None
