"""Which form of the hot path is in use: the compiled module or pure Python."""

import os
import warnings
from importlib.util import source_hash
from pathlib import Path
from types import ModuleType
from typing import Final

__all__ = ["COMPILED", "load", "speedups"]


def load() -> ModuleType | None:
    """Return the compiled module, or None if pure Python is to be used."""
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
    return _speedups


speedups: Final = load()
COMPILED: Final[bool] = speedups is not None
