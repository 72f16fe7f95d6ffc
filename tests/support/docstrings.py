"""Docstrings as data: the public functions and members, and the entries of their sections."""

from __future__ import annotations

import inspect
import re
from enum import Enum
from typing import TYPE_CHECKING, Any

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Iterator


@frozen
class Documented:
    """A function, a class, or a public member of a class, with its docstring."""

    name: str
    thing: Any
    owner: type | None = None

    @property
    def text(self) -> str:
        """The docstring, without indentation."""
        return inspect.getdoc(self.thing) or ""

    @property
    def sections(self) -> list[str]:
        """The names of its sections."""
        return re.findall(r"^(\w+):$", self.text, re.MULTILINE)

    def entries(self, section: str) -> dict[str, str]:
        """Return the entries of a section, such as "Raises", by their names."""
        found: dict[str, str] = {}
        names: list[str] = []
        for line in _section(self.text, section):
            entry = re.match(r" {4}([^\s:][^:]*): (.*)", line)
            if entry:
                names = entry[1].split(", ")
            elif not line.startswith(" " * 8):
                names = []  # a sentence about all of them
            for name in names:
                text = entry[2] if entry else line.strip()
                found[name] = f"{found.get(name, '')} {text}".strip()
        return found

    def like(self, section: str) -> Documented | None:
        """Return the member to which a docstring refers, as "Args and Raises: as for addbuf"."""
        reference = re.search(rf"\b{section}\b[^.:]*: as for (\w+)", self.text)
        return self._sibling(reference[1]) if reference else None

    def argument(self, name: str) -> str:
        """Return the docstring's description of an argument, or "" if there is none.

        This is its entry under Args, or that of another member to which the docstring refers.
        Without Args it is the docstring, if the argument's name occurs there.
        """
        text = self.entries("Args").get(name, "")
        if text:
            reference = re.match(r"as for (\w+)", text)
            other = self._sibling(reference[1]) if reference else None
            return f"{text} {other.argument(name)}" if other else text
        other = self.like("Args")
        if other:
            return other.argument(name)
        return "" if self.entries("Args") or not re.search(rf"\b{name}\b", self.text) else self.text

    def parameters(self) -> dict[str, inspect.Parameter]:
        """Return the parameters that a caller gives."""
        made = inspect.isclass(self.thing) and "Args" not in self.sections
        if made or not callable(self.thing):
            return {}
        parameters = inspect.signature(self.thing).parameters
        bound = self.owner is not None
        return {name: each for name, each in parameters.items() if not bound or name != "self"}

    def _sibling(self, name: str) -> Documented | None:
        if self.owner is None or not hasattr(self.owner, name):
            return None
        return Documented(name, getattr(self.owner, name), self.owner)


def documented(thing: Any) -> Iterator[Documented]:
    """Give a function; or a class, and the public members of it and of its base classes.

    Of an enumeration it gives the class only: the members of its base class are Python's.
    """
    yield Documented(thing.__name__, thing)
    if inspect.isclass(thing) and not issubclass(thing, Enum):
        for base in reversed(thing.__mro__[:-1]):
            for name, member in vars(base).items():
                if not name.startswith("_") and (
                    isinstance(member, property) or inspect.isroutine(member)
                ):
                    yield Documented(name, member, thing)


def _section(docstring: str, section: str) -> list[str]:
    """Return the indented lines of a section."""
    _, found, rest = f"\n{docstring}\n".partition(f"\n{section}:\n")
    lines: list[str] = []
    for line in rest.splitlines() if found else []:
        if line and not line.startswith(" "):
            break
        lines.append(line)
    return lines
