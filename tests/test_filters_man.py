"""The man pages of filters say what the code does."""

from __future__ import annotations

import gzip
import inspect
import re
import shutil
import ssl
import subprocess
from typing import TYPE_CHECKING

import pytest
import trustme

from iobatch import filters
from tests.helpers import PATIENCE, ROOT, data, receive_all
from tests.test_filters import unchunk
from tests.test_man import code, example, section, sent

if TYPE_CHECKING:
    import socket
    from pathlib import Path

NAMES = ("Chunked", "Filter", "TLS")


def spelled(made: object) -> str:
    """Return a signature without self, as a synopsis shows it."""
    actual = inspect.signature(made)  # type: ignore[arg-type]
    parameters = [each for each in actual.parameters.values() if each.name != "self"]
    return str(actual.replace(parameters=parameters)).replace("'", "")


@pytest.mark.parametrize("name", NAMES)
def test_synopsis(name: str) -> None:
    """A synopsis has the class and every public member, with its signature or type."""
    made = getattr(filters, name)
    expected = {name + (spelled(made) if inspect.signature(made).parameters else "()")}
    for owner, prefix in ((made, "filter" if name == "Filter" else "transform"),) + (
        ((filters.Transform, "transform"),) if name == "Filter" else ()
    ):
        for member, value in vars(owner).items():
            if member.startswith("_"):
                continue
            if isinstance(value, property):
                expected.add(f"{prefix}.{member}: {value.fget.__annotations__['return']}")
            elif member in inspect.get_annotations(owner):
                expected.add(f"{prefix}.{member}: {inspect.get_annotations(owner)[member]}")
            else:
                expected.add(f"{prefix}.{member}{spelled(value)}")
    statements = re.findall(r"^\S.*\n(?: .*\n)*", code(f"{name}.3", "SYNOPSIS"), re.MULTILINE)
    assert statements.pop(0).startswith("from iobatch.filters import " + name)
    assert {re.sub(r"\s+", " ", statement).strip() for statement in statements} == expected


@pytest.mark.parametrize("name", NAMES)
def test_lint(name: str) -> None:
    """Mandoc finds nothing to warn of in a page."""
    if not shutil.which("mandoc"):
        pytest.skip("mandoc is missing: install it (Debian: apt-get install mandoc)")
    lint = subprocess.run(
        ["mandoc", "-T", "lint", "-W", "warning", ROOT / "man" / f"{name}.3"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (lint.returncode, lint.stdout, lint.stderr) == (0, "", "")


def test_brotli_adapter() -> None:
    """The adapter for brotli that the page shows is one."""
    brotli = pytest.importorskip("brotli", reason="brotli is missing: pip install brotli")
    lines = "\n".join(section("Filter.3", "DESCRIPTION"))
    shown = re.search(r"\.Bd -literal[^\n]*\n(.*?)\.Ed", lines, re.DOTALL)
    assert shown is not None
    namespace: dict[str, object] = {"brotli": brotli}
    exec("from types import SimpleNamespace\n" + shown[1], namespace)
    transform = namespace["transform"]
    coded = transform.compress(b"some text") + transform.flush()  # type: ignore[attr-defined]
    assert brotli.decompress(coded) == b"some text"


def test_filter_example(tmp_path: Path) -> None:
    """The example of Filter sends a file, compressed and in chunks."""
    (tmp_path / "file").write_bytes(data(200_000))

    def send(sock: socket.socket) -> None:
        sock.setblocking(False)
        example("Filter.3")["send_body"](sock, tmp_path / "file")

    assert gzip.decompress(unchunk(sent(send))) == data(200_000)


def test_chunked_example() -> None:
    """The example of Chunked makes a chunk of each part."""
    parts = ["one", "", "three"]
    raw = sent(lambda sock: example("Chunked.3")["send_chunks"](sock, parts))
    assert raw == b"3\r\none\r\n5\r\nthree\r\n0\r\n\r\n"


def test_tls_example() -> None:
    """The example of TLS answers a request, and ends with close_notify."""
    authority = trustme.CA()
    ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.issue_cert("localhost").configure_cert(ours)
    authority.configure_trust(theirs)

    def receive(sock: socket.socket) -> bytes:
        with theirs.wrap_socket(
            sock, server_hostname="localhost", suppress_ragged_eofs=False
        ) as conn:
            conn.send(b"a question")
            return receive_all(conn)

    text = "an answer " * 10_000
    got = sent(lambda sock: example("TLS.3")["answer"](sock, ours, text), receive)
    assert got == text.encode()
