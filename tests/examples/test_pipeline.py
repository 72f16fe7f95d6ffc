"""pipeline.py: a file through gzip and TLS, read by openssl, gzip, ssl and zlib."""

from __future__ import annotations

import socket
import ssl
import subprocess
import zlib
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.support.batches import data
from tests.support.examples import line_count, running
from tests.support.programs import tool
from tests.support.sockets import PATIENCE, receive_all

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import trustme

PROGRAM = "pipeline.py"
# More than the buffers of both sockets hold, and a part that gzip makes smaller.
BODY = data(6_000_000) + bytes(2_000_000)


@contextmanager
def serving(authority: trustme.CA, folder: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Run the server; give its process and its port."""
    certificate = authority.issue_cert("localhost")
    certificate.private_key_pem.write_to_path(folder / "key")
    certificate.cert_chain_pems[0].write_to_path(folder / "cert")
    (folder / "file").write_bytes(BODY)
    with running(PROGRAM, folder / "cert", folder / "key", folder / "file", "0") as server:
        yield server


def connect(authority: trustme.CA, port: int) -> ssl.SSLSocket:
    """Connect without a handshake. An end of stream without close_notify is an error."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(context)
    sock = socket.create_connection(("127.0.0.1", port), PATIENCE)
    return context.wrap_socket(
        sock, server_hostname="localhost", suppress_ragged_eofs=False, do_handshake_on_connect=False
    )


def test_pipeline_has_fewer_than_65_lines() -> None:
    assert line_count(PROGRAM) < 65


def test_pipeline_sends_to_openssl_what_gzip_restores(
    authority: trustme.CA, tmp_path: Path
) -> None:
    openssl, gzip = tool("openssl", "openssl"), tool("gzip", "gzip")
    with serving(authority, tmp_path) as (_, port):
        client = subprocess.run(
            [openssl, "s_client", "-quiet", "-connect", f"127.0.0.1:{port}"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PATIENCE,
            check=False,
        )
    unzipped = subprocess.run([gzip, "-dc"], input=client.stdout, capture_output=True, check=True)
    assert unzipped.stdout == BODY


def test_pipeline_serves_others_while_a_client_sends_no_handshake(
    authority: trustme.CA, tmp_path: Path
) -> None:
    """That client is served after its handshake; close_notify ends each stream."""
    with (
        serving(authority, tmp_path) as (_, port),
        connect(authority, port) as idle,
        connect(authority, port) as first,
        connect(authority, port) as second,
    ):
        for client in (first, second, idle):
            client.do_handshake()
            assert zlib.decompress(receive_all(client), wbits=31) == BODY


def test_pipeline_reports_a_client_that_leaves_and_serves_the_next_one(
    authority: trustme.CA, tmp_path: Path
) -> None:
    with serving(authority, tmp_path) as (server, port):
        with connect(authority, port) as client:
            client.do_handshake()
            assert client.recv(100)
        assert server.stdout is not None
        assert "sent" not in server.stdout.readline()
        with connect(authority, port) as client:
            client.do_handshake()
            assert zlib.decompress(receive_all(client), wbits=31) == BODY
        assert server.stdout.readline() == "sent\n"
