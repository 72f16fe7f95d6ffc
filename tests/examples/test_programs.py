"""The folder of examples: its README, whose commands work, and the usage of each program."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.examples import EXAMPLES, line_count, running
from tests.support.programs import ROOT, environment, tool
from tests.support.sockets import PATIENCE

if TYPE_CHECKING:
    from pathlib import Path

README = (EXAMPLES / "README.md").read_text()
FILES = sorted(path.name for path in EXAMPLES.glob("*.py"))
PROGRAMS = [name for name in FILES if "__main__" in (EXAMPLES / name).read_text()]
# The sections by their programs. What is before the first one sets up.
SETUP, *TEXTS = re.split(r"^## \d\. ", README, flags=re.MULTILINE)
SECTIONS = {text.split("`")[1]: text for text in TEXTS}
MODULES = {
    "asgi_server.py": ("httptools", "starlette"),
    "asyncio_tls_server.py": ("httptools",),
    "h11_server.py": ("h11",),
    "http_server.py": ("httptools",),
    "trio_server.py": ("trio",),
}


def blocks(text: str, language: str = "sh") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    for module in MODULES.get(program, ()):
        pytest.importorskip(module, reason=f"{module} is missing: pip install {module}")
    return subprocess.run(
        [sys.executable, EXAMPLES / program, *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        env=environment(COLUMNS="80"),
    )


def shell(command: str, folder: Path) -> str:
    """Run a command in a folder, and return what it prints."""
    result = subprocess.run(
        ["/bin/sh", "-c", command],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    return result.stdout.replace("\r", "")


def test_readme_has_each_file_of_the_folder_and_a_section_for_each_program() -> None:
    headings = re.findall(r"^## (\d)\. (.*)$", README, re.MULTILINE)
    assert [int(number) for number, _ in headings] == [*range(1, len(headings) + 1)]
    named = [name for _, heading in headings for name in re.findall(r"`(\w+\.py)`", heading)]
    assert sorted(named) == FILES
    assert sorted(SECTIONS) == PROGRAMS


@pytest.mark.parametrize("program", SECTIONS)
def test_commands_of_the_readme_print_what_it_shows(tmp_path: Path, program: str) -> None:
    for name in ("curl", "gzip", "openssl"):
        tool(name, name)
    for module in MODULES.get(program, ()):
        pytest.importorskip(module, reason=f"{module} is missing: pip install {module}")
    for name in ("LICENSE", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    _install, certificate = blocks(SETUP)
    serve, ask = blocks(SECTIONS[program])
    [shown] = blocks(SECTIONS[program], "text")
    *prepare, command = serve.splitlines()
    python, path, *arguments = command.split()
    assert (python, path) == (".venv/bin/python", f"examples/{program}")
    for line in [certificate] * ("key.pem" in arguments) + prepare:
        shell(line, tmp_path)
    port_option = ["--port"] if program == "asgi_server.py" else []
    status = 0 if program == "asgi_server.py" else -15
    with running(program, *arguments, *port_option, "0", cwd=tmp_path, status=status) as (_, port):
        assert shell(ask.replace("8000", str(port)), tmp_path) == shown


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_has_the_usage_and_what_the_program_does(program: str) -> None:
    result = run(program, "--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith(f"usage: {program} [-h] ")
    first = (EXAMPLES / program).read_text().partition("\n")[0].removeprefix('"""')
    assert first.rstrip('"') in " ".join(result.stdout.split())


@pytest.mark.parametrize("program", PROGRAMS)
def test_missing_argument_is_reported_with_the_usage(program: str) -> None:
    result = run(program)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"usage: {program} [-h] ")


@pytest.mark.parametrize("program", PROGRAMS)
def test_port_that_is_no_number_is_reported_with_the_usage(program: str) -> None:
    usage = run(program).stderr.partition("\n")[0]
    arguments = ["--port", "x"] if "--port" in usage else [*re.findall(r" [A-Z]+\b", usage), "x"]
    result = run(program, *arguments)
    assert result.returncode == 2
    assert "invalid int value: 'x'" in result.stderr


@pytest.mark.parametrize("name", FILES)
def test_file_is_short(name: str) -> None:
    assert line_count(name) < (200 if name.startswith("asgi_") else 150)
