"""The example pipeline serves a file, compressed and encrypted, to programs that are not ours."""

from __future__ import annotations

import shutil
import signal
import socket
import ssl
import subprocess
import sys
import zlib
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import trustme

from tests.helpers import PATIENCE, ROOT, data, receive_all

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

EXAMPLE = ROOT / "examples" / "pipeline.py"
# More than the buffers of both sockets hold, and a part that shrinks.
BODY = data(6_000_000) + bytes(2_000_000)


@contextmanager
def serving(folder: Path) -> Iterator[tuple[subprocess.Popen[str], trustme.CA, int]]:
    """Run the example; give the process, the authority that it is certified by, and its port."""
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    certificate.private_key_pem.write_to_path(folder / "key")
    certificate.cert_chain_pems[0].write_to_path(folder / "cert")
    (folder / "file").write_bytes(BODY)
    arguments = [str(folder / name) for name in ("cert", "key", "file")]
    with subprocess.Popen(
        [sys.executable, EXAMPLE, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
    ) as server:
        try:
            assert server.stdout is not None
            yield server, authority, int(server.stdout.readline().rpartition(":")[2])
        finally:
            server.send_signal(signal.SIGINT)
            server.communicate(timeout=PATIENCE)


def connect(authority: trustme.CA, port: int) -> ssl.SSLSocket:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(context)
    sock = socket.create_connection(("127.0.0.1", port), PATIENCE)
    return context.wrap_socket(
        sock, server_hostname="localhost", suppress_ragged_eofs=False, do_handshake_on_connect=False
    )


def test_it_is_short() -> None:
    """The example has under 60 lines."""
    assert len(EXAMPLE.read_text().splitlines()) < 60


def test_s_client(tmp_path: Path) -> None:
    """The openssl program decrypts what arrives, and gzip finds the file in it."""
    for program in ("openssl", "gzip"):
        if not shutil.which(program):
            pytest.skip(f"{program} is missing: install it")
    with serving(tmp_path) as (_, _, port):
        client = subprocess.run(
            ["openssl", "s_client", "-quiet", "-connect", f"127.0.0.1:{port}"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PATIENCE,
            check=False,
        )
    unzipped = subprocess.run(["gzip", "-dc"], input=client.stdout, capture_output=True, check=True)
    assert unzipped.stdout == BODY


def test_clients_take_turns(tmp_path: Path) -> None:
    """A client that does not even shake hands keeps nobody waiting; the end is close_notify."""
    with (
        serving(tmp_path) as (_, authority, port),
        connect(authority, port) as idle,
        connect(authority, port) as first,
        connect(authority, port) as second,
    ):
        for client in (first, second, idle):
            client.do_handshake()
            # An end without close_notify would raise.
            assert zlib.decompress(receive_all(client), wbits=31) == BODY


def test_a_client_that_leaves(tmp_path: Path) -> None:
    """A client that leaves in the middle is reported, and the next one is served."""
    with serving(tmp_path) as (server, authority, port):
        with connect(authority, port) as client:
            client.do_handshake()
            assert client.recv(100)
        assert server.stdout is not None
        assert "sent" not in server.stdout.readline()
        with connect(authority, port) as client:
            client.do_handshake()
            assert zlib.decompress(receive_all(client), wbits=31) == BODY
        assert server.stdout.readline() == "sent\n"
