"""The sdist, and what IOBATCH_SPEEDUPS makes of it: wheels and editable installs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from importlib.metadata import version
from typing import TYPE_CHECKING

import pytest

from tests.support.programs import ROOT, tool

if TYPE_CHECKING:
    from pathlib import Path

NAME = f"iobatch-{version('iobatch')}"
MODULE = f"iobatch/_speedups{sysconfig.get_config_var('EXT_SUFFIX')}"
NO_COMPILER = {"CC": "/nowhere/cc"}


def hatchling(tree: Path, target: str, folder: Path, **changes: str) -> str:
    """Build a target with the packages that are installed here, and return what that prints."""
    return subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", folder],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
        cwd=tree,
        env={**os.environ, "IOBATCH_SPEEDUPS": "", **changes},
    ).stdout


def files(tree: Path) -> set[str]:
    """Return the names of all files in a folder, without Python's cache."""
    paths = [path for path in tree.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    return {path.relative_to(tree).as_posix() for path in paths}


def members(wheel: Path) -> set[str]:
    """Return the names of the files in a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the sdist, and return the folder that it is unpacked in."""
    folder = tmp_path_factory.mktemp("sdist")
    hatchling(ROOT, "sdist", folder)
    with tarfile.open(folder / f"{NAME}.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder / NAME


@pytest.fixture(scope="module")
def pure_wheel(tree: Path) -> Path:
    """Build the wheel that is pure by choice."""
    hatchling(tree, "wheel", tree.parent / "off", IOBATCH_SPEEDUPS="off")
    [wheel] = (tree.parent / "off").iterdir()
    return wheel


@pytest.fixture
def compiler() -> None:
    """Skip the test if Python's compiler is missing."""
    tool(sysconfig.get_config_var("CC").split()[0], "gcc libc6-dev python3-dev")


def test_sdist_has_the_source_of_the_module_and_nothing_compiled(tree: Path) -> None:
    found = files(tree)
    assert found >= {"iobatch/_build.py", "iobatch/_speedups.pyx", "iobatch/_speedups.pyi"}
    assert {name for name in found if name.endswith((".so", ".pyd"))} == set()
    assert "iobatch/_speedups.c" not in found


def test_pure_wheel_fits_each_python_and_has_no_source_of_the_module(
    tree: Path, pure_wheel: Path
) -> None:
    assert pure_wheel.name == f"{NAME}-py3-none-any.whl"
    package = {name for name in members(pure_wheel) if name.startswith("iobatch/")}
    sources = {name for name in files(tree) if name.startswith("iobatch/")}
    assert package == sources - {"iobatch/_build.py", "iobatch/_speedups.pyx"}


@pytest.mark.usefixtures("compiler")
def test_compiled_wheel_is_the_pure_one_with_a_module_for_this_python(
    tree: Path, pure_wheel: Path, tmp_path: Path
) -> None:
    before = files(tree)
    hatchling(tree, "wheel", tmp_path, IOBATCH_SPEEDUPS="require")
    assert files(tree) == before
    [wheel] = tmp_path.glob("*.whl")
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert wheel.name.startswith(f"{NAME}-{tag}-{tag}")
    assert members(wheel) - members(pure_wheel) == {MODULE}
    assert members(pure_wheel) < members(wheel)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
        assert "Root-Is-Purelib: false" in archive.read(f"{NAME}.dist-info/WHEEL").decode()
    for pure, printed in (("", "True\n"), ("1", "False\n")):
        got = subprocess.check_output(
            [sys.executable, "-c", "import iobatch; print(iobatch.COMPILED)"],
            text=True,
            env={**os.environ, "PYTHONPATH": str(tmp_path), "IOBATCH_PURE": pure},
        )
        assert got == printed


def test_wheel_is_pure_and_the_build_says_why_where_nothing_compiles(
    tree: Path, pure_wheel: Path, tmp_path: Path
) -> None:
    (tmp_path / "Cython").mkdir()
    (tmp_path / "Cython" / "__init__.py").write_text("raise ImportError('no Cython here')")
    for name, changes, reason in (
        ("compiler", NO_COMPILER, "CompileError: .*/nowhere/cc"),
        ("headers", {"CC": "false"}, "CompileError: .*false"),
        ("cython", {"PYTHONPATH": str(tmp_path)}, "ImportError: no Cython here"),
    ):
        output = hatchling(tree, "wheel", tmp_path / name, **changes)
        line = f"^iobatch is built without its compiled module: {reason}"
        assert re.search(line, output, re.MULTILINE)
        [wheel] = (tmp_path / name).iterdir()
        assert (wheel.name, wheel.read_bytes()) == (pure_wheel.name, pure_wheel.read_bytes())


def test_build_that_requires_the_module_fails_with_the_message_of_the_compiler(
    tree: Path, tmp_path: Path
) -> None:
    with pytest.raises(subprocess.CalledProcessError) as caught:
        hatchling(tree, "wheel", tmp_path, IOBATCH_SPEEDUPS="require", **NO_COMPILER)
    assert "/nowhere/cc" in caught.value.output.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_other_value_of_iobatch_speedups_is_an_error(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError) as caught:
        hatchling(tree, "wheel", tmp_path, IOBATCH_SPEEDUPS="yes")
    assert caught.value.output.endswith("must be auto, require or off, not 'yes'\n")


@pytest.mark.usefixtures("compiler")
def test_editable_install_has_the_module_in_its_tree_until_the_next_one_is_pure(
    tree: Path, tmp_path: Path
) -> None:
    before = files(tree)
    hatchling(tree, "wheel:editable", tmp_path, IOBATCH_SPEEDUPS="require")
    assert files(tree) - before == {MODULE}
    hatchling(tree, "wheel:editable", tmp_path, **NO_COMPILER)
    assert files(tree) == before
