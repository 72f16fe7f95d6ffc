"""Which form of the hot path is in use: the compiled module or pure Python."""

import os
import warnings
from collections.abc import Callable
from functools import update_wrapper
from importlib.util import source_hash
from pathlib import Path
from types import (
    GetSetDescriptorType,
    MemberDescriptorType,
    MethodDescriptorType,
    ModuleType,
    WrapperDescriptorType,
)
from typing import Any, Final, TypeVar, cast

Function = TypeVar("Function", bound=Callable[..., object])
Class = TypeVar("Class")
# The descriptors that `__slots__` makes.
_FIELDS: Final = (GetSetDescriptorType, MemberDescriptorType)

__all__ = ["COMPILED", "compiled", "compiled_methods", "connect", "load", "speedups"]


def load() -> ModuleType | None:
    """Return the compiled module, or None for pure Python."""
    if os.environ.get("IOBATCH_PURE"):
        return None
    try:
        from iobatch import _speedups  # noqa: PLC0415 # not loaded unless it is used
    except ImportError:  # it was never compiled, or another interpreter of this process has it
        return None
    # Only a source tree has this file. An editable install there keeps the module that it compiled
    # until it is repeated, and that module need not fit the sources of today.
    source = Path(__file__).with_name("_speedups.pyx")
    if source.exists():
        hash_of_source = int.from_bytes(source_hash(source.read_bytes()))
        if hash_of_source != _speedups.SOURCE_HASH:
            warnings.warn(
                "iobatch uses pure Python: its compiled module was made from another "
                "_speedups.pyx; install iobatch again",
                RuntimeWarning,
                stacklevel=2,
            )
            return None
    # A second copy of the package in one process, imported anew, has no compiled form.
    return _speedups if _speedups.claim() else None


speedups: Final = load()
COMPILED: Final[bool] = speedups is not None


def compiled(twin: Function) -> Function:
    """Return the compiled form of a function, or the function itself if there is none.

    The compiled form handles the plain cases and calls its twin in Python for all others. It shows
    the twin's docstring, signature and annotations.
    """
    if speedups is None:
        return twin
    connect(twin)
    return cast("Function", update_wrapper(getattr(speedups, twin.__name__), twin))


def compiled_methods(twin: type[Class]) -> type[Class]:
    """Return a class with the compiled forms of its methods that have one, or the class itself.

    The class `<name>Base` of the compiled module becomes its base. It has some of the fields, and
    the special methods, which only a base can have in compiled form. The class `<name>` of that
    module has the functions that replace the other methods and the getters of properties. All
    members that a user sees are in the new class.
    """
    if speedups is None:
        return twin
    base: type = getattr(speedups, f"{twin.__name__}Base")
    functions = vars(getattr(speedups, twin.__name__, object))
    names: dict[str, Any] = {}
    slots: list[str] = []
    for name, value in vars(twin).items():
        special = vars(base).get(name)
        if isinstance(special, MethodDescriptorType):
            pass  # __await__: in the class it would be called through Python
        elif isinstance(special, (WrapperDescriptorType, *_FIELDS)):
            names[name] = special
        elif isinstance(value, _FIELDS):
            slots.append(name)
        elif not isinstance(functions.get(name), type(speedups.iob_send)):
            names[name] = value
        elif isinstance(value, property):
            getter: Any = value.fget
            names[name] = property(update_wrapper(functions[name], getter))
        else:
            names[name] = update_wrapper(functions[name], value)
    names["__slots__"] = slots
    form: Any = type(twin.__name__, (base,), names)
    if hasattr(speedups, f"connect_{twin.__name__}"):
        connect(twin, form)
    return cast("type[Class]", form)


def connect(twin: Any, *form: type) -> None:
    """Have the compiled form of a function or class call its twin, if there is a compiled form."""
    if speedups is not None:
        getattr(speedups, f"connect_{twin.__name__}")(twin, *form)
