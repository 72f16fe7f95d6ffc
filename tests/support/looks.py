"""What a program can see of the library's form: in its public names, its objects and its errors.

Run as a program, this module prints its report as JSON, so that a test can compare two forms.
"""

from __future__ import annotations

import array
import copy
import inspect
import json
import pickle
import pydoc
import re
import socket
import sys
import typing
import weakref
from contextlib import closing
from types import WrapperDescriptorType
from typing import TYPE_CHECKING, Any

import iobatch
import iobatch.aio
import iobatch.filters
from iobatch import IOBatch, iob_send

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MODULES = (iobatch, iobatch.aio, iobatch.filters)
MAX_BYTES = 2**63 - 1


class Labelled(IOBatch):
    """A subclass with a dictionary, and with arguments of its own."""

    def __init__(self, label: str, *, size: int = 0) -> None:
        super().__init__()
        self.label = label
        self.size = size


class Shouting(IOBatch):
    """A subclass that replaces a method."""

    __slots__ = ()

    def addbuf(self, data: Any, *, on_release: Callable[[], object] | None = None) -> None:
        super().addbuf(bytes(data) + b"!", on_release=on_release)


def report() -> dict[str, Any]:
    """Return facts by subject; equal facts mean that both forms look alike."""
    return {
        "names": dict(look_of_names()),
        "help": {name: help_of(thing) for name, thing in public_things()},
        "classes": dict(look_of_objects()),
        "errors": dict(errors_of_calls()),
    }


def public_things() -> Iterator[tuple[str, Any]]:
    for module in MODULES:
        for name in module.__all__:
            yield f"{module.__name__}.{name}", getattr(module, name)


def look_of_names() -> Iterator[tuple[str, Any]]:
    for name, thing in public_things():
        if not callable(thing):
            if name != "iobatch.COMPILED":
                yield name, repr(thing)
            continue
        yield name, look(thing)
        if inspect.isclass(thing):
            for member, value in sorted(vars(thing).items()):
                # Neither what is private, nor what describes the class, such as __slots__.
                if not member.startswith("_") or (member.endswith("__") and callable(value)):
                    yield f"{name}.{member}", look_of_member(value)
            if hasattr(thing, "__await__"):  # the compiled form inherits it
                yield f"{name}.__await__", "slot or field"


def look_of_member(value: Any) -> Any:
    if isinstance(value, property):
        return ["property", value.__doc__, look(value.fget), look(value.fset)]
    if isinstance(value, WrapperDescriptorType) or inspect.isdatadescriptor(value):
        return "slot or field"
    if inspect.isfunction(value) and value.__name__ in {"__await__", "__bool__", "__del__"}:
        return "slot or field"  # the compiled form has the C function of the type
    return look(value) if callable(value) else repr(value)


def look(thing: Any) -> Any:
    """Return how a class or function is shown by inspect, typing and its attributes."""
    if thing is None:
        return None
    try:
        signature = str(inspect.signature(thing))
    except (TypeError, ValueError) as exc:
        signature = type(exc).__name__
    try:
        hints = {name: repr(hint) for name, hint in typing.get_type_hints(thing).items()}
    except (NameError, TypeError) as exc:
        hints = {"": type(exc).__name__}
    names = [getattr(thing, name, None) for name in ("__module__", "__name__", "__qualname__")]
    return [*names, signature, hints, thing.__doc__, inspect.iscoroutinefunction(thing)]


def help_of(thing: Any) -> list[str]:
    """Return the names that help() shows, except those that each compiled base class has."""
    text = pydoc.plain(pydoc.render_doc(thing))
    return sorted({*re.findall(r"^ \|  (\w+)(?:\(|$| = )", text, re.MULTILINE)} - {"__new__"})


def look_of_objects() -> Iterator[tuple[str, Any]]:
    batch = IOBatch()
    yield "attributes", [name for name in dir(batch) if not name.startswith("_")]
    yield "repr of an empty batch", repr(batch)
    batch.addbufs([b"one", bytearray(b"two")])
    batch.addfile(0, 5, 10)
    yield "repr", repr(batch)
    batch.reset()
    batch.addfile(0, 5, 10)
    yield "repr with a file", repr(batch)
    yield "truth", [bool(batch), bool(IOBatch())]
    yield "weak reference", weakref.ref(batch)() is batch
    yield "hash and equality", [hash(batch) == hash(batch), batch == IOBatch()]
    labelled = Labelled("a", size=3)
    labelled.addbuf(b"abc")
    yield "subclass", [labelled.label, vars(labelled), labelled.bytesleft, repr(labelled)]
    shouting = Shouting()
    shouting.adds("hi")
    yield "subclass with a method", [shouting.bytesleft, repr(shouting), hasattr(batch, "__dict__")]
    moved = IOBatch()
    moved.extend(labelled)
    yield "class by its name", pickle.loads(pickle.dumps(IOBatch)) is IOBatch
    yield "moved", [moved.bytesleft, labelled.bytesleft]


def errors_of_calls() -> Iterator[tuple[str, list[str]]]:
    """Give for each wrong call its exception, with the state of the batch after it."""
    with closing(socket.socket()) as closed, socket.socket() as sock:
        closed.close()
        for number, (call, arguments, options) in enumerate(wrong_calls(sock, closed)):
            batch = IOBatch()
            batch.addbuf(b"abc")
            function = iob_send if call == "iob_send" else getattr(batch, call)
            given = [batch if each is IOBatch else each for each in arguments]
            try:
                outcome = [repr(function(*given, **options))]
            except Exception as exc:  # noqa: BLE001 # all are compared
                # The interpreter's own messages for a wrong number of arguments differ.
                counts = re.search(r"positional argument|keyword argument", str(exc))
                outcome = [type(exc).__name__, "" if counts else str(exc)]
                outcome += [repr(exc.__cause__), repr(exc.__context__)]
            yield f"{number}: {call}", [*outcome, repr(batch), repr(batch.error)]
            batch.reset()
    for action in (pickle.dumps, copy.copy, copy.deepcopy):
        try:
            action(batch)
        except TypeError as exc:
            yield action.__name__, [str(exc)]
    for name in ("bytesleft", "error", "nothing"):
        try:
            setattr(batch, name, 1)
        except AttributeError as exc:
            yield name, [str(exc)]


def wrong_calls(
    sock: socket.socket, closed: socket.socket
) -> Iterator[tuple[str, list[Any], dict[str, Any]]]:
    """Give the name of each function to call with its arguments; IOBatch stands for a batch."""
    strided = memoryview(b"abcd")[::2]
    for data in (None, "text", 1.5, 3, [b"a"], strided, array.array("H", [1, 2])):
        yield "addbuf", [data], {}
        yield "prepend", [data], {}
        yield "addbufs", [data], {}
        yield "addbufs", [[b"a", data]], {}
        yield "addbufs", [(b"a", b"", data)], {}
    for name in ("addbuf", "addbufs", "addfile", "prepend", "addfile_close", "extend"):
        yield name, [], {}
        yield name, [b"", b"", b"", b"", b""], {}
        yield name, [b""], {"nothing": 1}
    for on_release in (1, "name"):
        yield "addbuf", [b"abc"], {"on_release": on_release}
        yield "addfile", [0, 0, 1], {"on_release": on_release}
    numbers = (-1, 0, True, 1, 1.5, None, "1", 2**31, MAX_BYTES, MAX_BYTES + 1, -(2**70), 2**70)
    for number in numbers:
        yield "addfile", [number, 0, 1], {}
        yield "addfile", [9999, number, 1], {}
        yield "addfile", [9999, 0, number], {}
        yield "addfile", [9999, number, number], {}
        yield "iob_send", [sock, IOBatch], {"limit": number}
        yield "iob_send", [sock, IOBatch], {"flags": number}
        yield "iob_send", [closed, IOBatch], {"limit": number}
    for target in (None, "text", 1.5, -1, 9999, 2**40, sock, closed):
        yield "iob_send", [target, IOBatch], {}
        yield "iob_send", [target, None], {}
        yield "iob_send", [target, target], {}
        yield "iob_send", [target], {}
        yield "iob_send", [target, IOBatch, 0], {}
    yield "iob_send", [sock, IOBatch], {"nothing": 1}


if __name__ == "__main__":
    json.dump(report(), sys.stdout)
