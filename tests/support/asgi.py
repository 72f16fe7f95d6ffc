"""Support for the tests of asgi_server.py: it runs applications, and requests by hand."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import httpx

from tests.support.batches import data
from tests.support.examples import EXAMPLES, running
from tests.support.sockets import PATIENCE

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

PROGRAM = "asgi_server.py"
HOST = "127.0.0.1"
# More than the buffers of a connection's two sockets hold.
LARGE = data(8_000_000)
SMALL = data(10_000)
FAULTS = r"(?s).*"
# What the server reports of a call whose client has left.
LOST = r"call ended: (OSError|ConnectionResetError|BrokenPipeError|ClientDisconnect)\(.*\)"


@contextmanager
def serving(app: str, reports: str = LOST) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Run the server for an application; give its process and its port."""
    with running(PROGRAM, f"tests.support.{app}:app", "--port", "0", reports=reports, status=0) as (
        process,
        port,
    ):
        yield process, port


# Serves with little time for the exchanges that are in progress when the server is stopped.
IMPATIENT = """
import asyncio, pkgutil, sys
sys.path[:1] = {examples!r}, ""  # the tests are in the current directory
import asgi_server
asgi_server.GRACE = 0.1
asyncio.run(asgi_server.serve(pkgutil.resolve_name(sys.argv[1]), 0))
"""


@contextmanager
def serving_impatiently(
    folder: Path, app: str, reports: str = r"call ended: CancelledError\(.*\)"
) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Run the server as above; it gives exchanges a tenth of a second when it is stopped."""
    program = folder / "impatient.py"
    program.write_text(IMPATIENT.format(examples=str(EXAMPLES)))
    argument = f"tests.support.{app}:app"
    with running(str(program), argument, reports=reports, status=0) as (process, port):
        yield process, port


@contextmanager
def client(port: int) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://{HOST}:{port}", trust_env=False, timeout=PATIENCE) as http:
        yield http


def script(*steps: object, method: str = "GET", fields: str = "", version: str = "1.1") -> bytes:
    """Return a request for a call that sends messages, or does what a word says."""
    query = quote(json.dumps(steps))
    return f"{method} /script?{query} HTTP/{version}\r\nHost: a\r\n{fields}\r\n".encode()


def start(status: int = 200, **fields: str) -> dict[str, Any]:
    headers = [(name.replace("_", "-"), value) for name, value in fields.items()]
    return {"type": "http.response.start", "status": status, "headers": headers}


def body(content: str = "", *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": content, "more_body": more}


def zerocopy(**keys: int) -> dict[str, Any]:
    return {"type": "http.response.zerocopysend", "file": "", **keys}


def pathsend(path: Path) -> dict[str, Any]:
    return {"type": "http.response.pathsend", "path": str(path)}


HELLO = script(start(), body("hello"))
