"""README.md: its commands, examples, links and tables."""

from __future__ import annotations

import gzip
import re
import socket
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pytest

import iobatch
from tests.support.batches import data
from tests.support.manpages import PAGES, sent
from tests.support.programs import ROOT
from tests.support.sockets import PATIENCE, receive_all
from tests.support.tls import tls_contexts

if TYPE_CHECKING:
    from pathlib import Path

    import trustme

README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """Return the code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_two_one_line_commands_install_an_extra_then_serve_or_test() -> None:
    _install, serve, test, _manual = blocks("sh")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for command, extra, action in (
        (serve, "httpd", "-m iobatch.httpd ."),
        (test, "test", "-m pytest"),
    ):
        assert command == (
            f"python3 -m venv .venv && .venv/bin/pip install -q -e '.[{extra}]'"
            f" && .venv/bin/python {action}\n"
        )
        assert extra in project["optional-dependencies"]
    assert find_spec("iobatch.httpd.__main__")


# Lets the kernel choose the port of an example, and prints it.
FREE_PORT = """
import socket

def create_server(address):
    listener = SERVER((address[0], 0))
    print(listener.getsockname()[1], flush=True)
    return listener

SERVER, socket.create_server = socket.create_server, create_server
"""


@pytest.mark.parametrize("number", [0, 1], ids=["selectors", "asyncio"])
def test_example_sends_a_text_and_the_license_to_each_client(number: int) -> None:
    program = [sys.executable, "-W", "error", "-c", FREE_PORT + blocks("python")[number]]
    with subprocess.Popen(program, cwd=ROOT, stdout=subprocess.PIPE) as server:
        assert server.stdout
        try:
            address = ("127.0.0.1", int(server.stdout.readline()))
            for _ in range(2):
                with socket.create_connection(address, PATIENCE) as client:
                    answer = receive_all(client)
                assert answer == b"Here is the license.\n\n" + (ROOT / "LICENSE").read_bytes()
        finally:
            server.kill()


def test_example_sends_a_file_over_tls_compressed(tmp_path: Path, authority: trustme.CA) -> None:
    namespace: dict[str, Any] = {}
    exec(blocks("python")[2], namespace)
    content = data(200_000)
    (tmp_path / "file").write_bytes(content)
    server, client = tls_contexts(authority)

    def send(sock: socket.socket) -> None:
        with server.wrap_socket(sock, server_side=True) as conn:
            namespace["send_compressed"](conn, str(tmp_path / "file"))

    def receive(sock: socket.socket) -> bytes:
        with client.wrap_socket(sock, server_hostname="localhost") as conn:
            return receive_all(conn)

    assert gzip.decompress(sent(send, receive)) == content


def test_each_relative_link_points_at_a_file_or_folder_that_a_browser_renders() -> None:
    for path in (ROOT / "README.md", ROOT / "examples/README.md", ROOT / "tests/bench/README.md"):
        targets = re.findall(r"\]\(([^:)#]+)\)", path.read_text())
        assert targets
        for target in targets:
            assert (path.parent / target).exists(), target
            assert target == "LICENSE" or target.endswith(("/", ".md", ".py", ".svg"))


def test_each_page_and_no_other_is_named() -> None:
    named = set(re.findall(r"([\w-]+)\((\d)\)", README))
    assert {f"{name}.{number}" for name, number in named} == {page.name for page in PAGES}


def test_table_of_return_codes_has_each_code_with_its_value() -> None:
    rows = re.findall(r"^\| `(IOB_\w+)` \| (-?\d) \|", README, re.MULTILINE)
    names = {name for name in iobatch.__all__ if name.startswith("IOB_")}
    assert {name: int(value) for name, value in rows} == {
        name: getattr(iobatch, name) for name in names
    }


def test_readme_has_fewer_than_200_lines() -> None:
    assert len(README.splitlines()) < 200
