"""The build's hook, which is not installed: hatchling runs it to compile `_speedups.pyx`.

The environment variable IOBATCH_SPEEDUPS decides what a wheel or an editable install has:

    auto      The compiled module, or pure Python if it can't be compiled; the build prints why.
    require   The compiled module, or the build fails.
    off       Pure Python.
"""

import atexit
import os
import shutil
import sys
import sysconfig
from importlib import import_module
from importlib.util import source_hash
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from hatchling.builders.config import BuilderConfig
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = Path("iobatch", "_speedups.pyx")  # a build runs in the root of the source tree (PEP 517)


def compile_speedups() -> Path:
    """Compile the module in a temporary folder, and return its path."""
    if sys.implementation.name != "cpython":
        raise RuntimeError("only CPython can load the compiled module")
    # Imported here, so that a missing package is a failure to compile, and not one of this hook.
    cython, setuptools = import_module("Cython.Build"), import_module("setuptools")
    folder = mkdtemp(prefix="iobatch-")
    atexit.register(shutil.rmtree, folder)  # the wheel is written after this hook has run
    hash_of_source = int.from_bytes(source_hash(SOURCE.read_bytes()))
    extension = setuptools.Extension(
        "iobatch._speedups",
        [str(SOURCE)],
        define_macros=[("IOBATCH_SOURCE_HASH", f"{hash_of_source}ULL")],
    )
    extensions = cython.cythonize([extension], build_dir=folder)
    command = setuptools.Distribution({"ext_modules": extensions}).get_command_obj("build_ext")
    command.build_lib = command.build_temp = folder
    command.ensure_finalized()
    command.run()
    [module] = command.get_outputs()
    return Path(module)


class SpeedupsHook(BuildHookInterface[BuilderConfig]):
    """Add the compiled module to a wheel, or to the source tree of an editable install."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile the module, as IOBATCH_SPEEDUPS says."""
        choice = os.environ.get("IOBATCH_SPEEDUPS") or "auto"
        if choice not in {"auto", "require", "off"}:
            raise ValueError(f"IOBATCH_SPEEDUPS must be auto, require or off, not {choice!r}")
        target = SOURCE.with_suffix(sysconfig.get_config_var("EXT_SUFFIX"))
        if version == "editable":
            # Pure Python must not load the module of an earlier install. The new one is a new file:
            # to overwrite a library crashes the processes that have loaded it.
            target.unlink(missing_ok=True)
        if choice == "off":
            return
        try:
            module = compile_speedups()
        except Exception as error:
            if choice == "require":
                raise
            reason = f"{type(error).__name__}: {error}"
            self.app.display_warning(f"iobatch is built without its compiled module: {reason}")
            return
        if version == "editable":
            shutil.copy(module, target)
        else:
            build_data["force_include"][str(module)] = str(target)
            build_data["infer_tag"] = True
            build_data["pure_python"] = False
