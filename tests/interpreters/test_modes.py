"""Every door of the library works in each mode of the interpreter, and prints no message.

tests/interpreters/smoke.py uses the doors. Modes that don't disturb each other share a run.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from iobatch import COMPILED
from tests.support.batches import data
from tests.support.programs import run_python

if TYPE_CHECKING:
    from tests.support.httpd import Keys

DOORS = """
httpd
iob_send
iob_sendmsg
iob_write
iob_sendall
Filter
TLS
BatchWriter on asyncio
send_to_stream on asyncio
BatchWriter on uvloop
send_to_stream on uvloop
send_batch on asyncio
send_batch on trio
"""
# Isolated modes have no PYTHONPATH, and without site there are no site-packages.
PROGRAM = f"""
import runpy, sys
sys.path[:] = {sys.path!r}
runpy.run_path({str(Path(__file__).with_name("smoke.py"))!r}, run_name="__main__")
"""
MODES = {
    "-O": (["-O"], {}),
    "-OO -I -S": (["-OO", "-I", "-S"], {}),
    "-bb -W error -X dev": (["-bb", "-W", "error", "-X", "dev"], {}),
    "asyncio's debug mode": (
        ["-W", "error"],
        {"PYTHONASYNCIODEBUG": "1", "PYTHONMALLOC": "debug"},
    ),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_door_works_in_silence(mode: str, keys: Keys, tmp_path: Path) -> None:
    pytest.importorskip("uvloop", reason="install it (pip install uvloop)")
    options, changes = MODES[mode]
    (tmp_path / "content").write_bytes(data(300_000))
    arguments = map(str, (tmp_path, keys.certificate, keys.key))
    result = run_python(PROGRAM, *arguments, options=options, **changes)
    assert (result.stdout, result.stderr) == (f"{COMPILED}{DOORS}", "")
    assert result.returncode == 0
