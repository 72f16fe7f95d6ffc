"""The choice between the compiled module and pure Python, when iobatch is imported."""

from __future__ import annotations

import sys
from importlib.util import source_hash
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

import iobatch
from iobatch import COMPILED, _forms
from tests.support.programs import run_python

if TYPE_CHECKING:
    from pathlib import Path

STATE = "import iobatch, sys; print(iobatch.COMPILED, 'iobatch._speedups' in sys.modules)"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """Stand a module in for the compiled one, of a package in a folder of its own."""
    made: Any = ModuleType("iobatch._speedups")
    made.claim = lambda: True
    monkeypatch.delenv("IOBATCH_PURE", raising=False)
    monkeypatch.setitem(sys.modules, made.__name__, made)
    monkeypatch.setattr(iobatch, "_speedups", made, raising=False)
    monkeypatch.setattr(_forms, "__file__", str(tmp_path / "_forms.py"))
    return made


def test_compiled_is_true_if_the_module_is_in_use() -> None:
    assert COMPILED is (_forms.speedups is not None)
    assert run_python(STATE).stdout == f"{COMPILED} {COMPILED}\n"


def test_iobatch_pure_leaves_the_module_unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IOBATCH_PURE", "0")  # any value, as PYTHONDEVMODE's
    assert run_python(STATE).stdout == "False False\n"
    assert _forms.load() is None


def test_installed_module_is_used_unless_iobatch_pure_has_a_value(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IOBATCH_PURE", "")
    assert _forms.load() is module


def test_module_that_cannot_be_loaded_is_not_used(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(iobatch, "_speedups")
    monkeypatch.setitem(sys.modules, module.__name__, None)  # to import it raises ImportError
    assert _forms.load() is None


def test_module_of_a_source_tree_is_used_until_its_source_changes(
    module: ModuleType, tmp_path: Path
) -> None:
    source = tmp_path / "_speedups.pyx"
    source.write_bytes(b"one source")
    module.SOURCE_HASH = int.from_bytes(source_hash(b"one source"))  # type: ignore[attr-defined]
    assert _forms.load() is module
    source.write_bytes(b"another one")
    with pytest.warns(RuntimeWarning, match="install iobatch again"):
        assert _forms.load() is None
