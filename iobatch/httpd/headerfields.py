"""Header fields that the command line adds to responses, by the paths of their requests."""

from __future__ import annotations

import os
import re
from argparse import ArgumentTypeError
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from attrs import define, field

from iobatch.httpd.controls import has_controls
from iobatch.httpd.responses import NO_CACHE
from iobatch.httpd.targets import split_path, split_target

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# The targets whose fields are kept. A target has at most 8000 bytes.
MAX_TARGETS = 256
# A token (RFC 9110 5.6.2).
NAME_FORM = "[!#$%&'*+.^_`|~0-9A-Za-z-]+"
# Fields that describe a response or its connection. A second line, or another value, would make
# the response wrong.
_OWN = frozenset(
    {
        "accept-ranges",
        "allow",
        "connection",
        "content-encoding",
        "content-length",
        "content-range",
        "content-type",
        "date",
        "etag",
        "keep-alive",
        "last-modified",
        "location",
        "retry-after",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "www-authenticate",
    }
)


class Rule(NamedTuple):
    """A header field, and the paths that it is for."""

    # For fnmatch; "": every response, also to a request without a valid path.
    pattern: str
    name: str
    value: str


class PathFields(NamedTuple):
    """The header fields for a path."""

    # In lower case.
    names: frozenset[str]
    # All except Cache-Control.
    lines: bytes
    # Is in place of the server's own line where a response has a file.
    cache_control: bytes

    def add_to(self, head: bytes) -> bytes:
        """Return the head of a response with the fields; both without what head_end adds."""
        return head.replace(NO_CACHE, self.cache_control, 1) + self.lines


@define(eq=False)
class HeaderFields:
    """The header fields for all paths."""

    _rules: Sequence[Rule]
    # Returns the fields for a request target, and keeps them: clients repeat targets.
    find: Callable[[bytes], PathFields] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.find = lru_cache(MAX_TARGETS)(self._find)

    def _find(self, target: bytes) -> PathFields:
        try:
            path = os.fsdecode(b"/".join((b"", *split_path(split_target(target)[0]))))
        except OSError:
            path = None
        fields: dict[str, str] = {}
        for pattern, name, value in self._rules:
            if not pattern or (path is not None and fnmatchcase(path, pattern)):
                fields[name.lower()] = f"{name}: {value}\r\n"
        names = frozenset(fields)
        cache_control = fields.pop("cache-control", "").encode() or NO_CACHE
        return PathFields(names, "".join(fields.values()).encode(), cache_control)


def parse_rule(argument: str) -> Rule:
    """Return the rule of an argument in the form "[PATTERN ]NAME: VALUE".

    Raises:
        ArgumentTypeError: the argument has another form, or the server makes the field itself.

    """
    pattern, line = "", argument
    if argument.startswith("/"):
        pattern, _, line = argument.partition(" ")
    name, colon, value = line.partition(":")
    value = value.removeprefix(" ")
    if not colon or not re.fullmatch(NAME_FORM, name):
        reason = "must be 'NAME: VALUE' or '/PATTERN NAME: VALUE'"
    elif name.lower() in _OWN:
        reason = f"the server makes {name} itself"
    elif has_controls(value):  # RFC 9110 5.5 allows a tab, which no field needs
        reason = "the value has a control character, or is not UTF-8"
    elif value != value.strip(" "):
        reason = "the value has a space at its beginning or end"
    else:
        return Rule(pattern, name, value)
    raise ArgumentTypeError(f"{argument!r}: {reason}")
