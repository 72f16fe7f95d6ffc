"""The servers of httpd, asgi and hostile: commands, a certificate, processes and CPU time."""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import ssl
import subprocess
import sys
import time
import venv
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import trustme
from attrs import frozen

from tests.bench.report import report_missing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.bench.report import Options

ROOT = Path(__file__).parents[2]
HOST = "127.0.0.1"
# Seconds for a server to start, and for each answer of check_responses.
TIMEOUT = 30
# The Python servers are installed outside the project's environment, and kept between runs.
VENV = ROOT / ".venv-httpd-peers"
REQUIREMENTS = ("aiohttp", "granian", "starlette", "tornado", "twisted", "uvicorn[standard]")
VERSIONS = """
from importlib.metadata import version
for name in "granian aiohttp tornado twisted uvicorn starlette uvloop httptools".split():
    print(name, version(name))
"""

NGINX = """\
daemon off;
worker_processes 1;
pid {home}/nginx-{port}.pid;
events {{ }}
http {{
    access_log off;
    default_type application/octet-stream;
    client_body_temp_path {home}/body;
    proxy_temp_path {home}/proxy;
    fastcgi_temp_path {home}/fastcgi;
    uwsgi_temp_path {home}/uwsgi;
    scgi_temp_path {home}/scgi;
    sendfile on;
    tcp_nopush on;
    open_file_cache max=100;
    keepalive_requests 4294967295;
    root {home}/files;
    ssl_protocols TLSv1.3;
    ssl_certificate {home}/cert.pem;
    ssl_certificate_key {home}/key.pem;
    server {{ listen {host}:{port}{tls}; }}
}}
"""


@frozen
class Program:
    """A server that can be started."""

    name: str
    # Called with a folder, which holds files/, cert.pem and key.pem, and a port.
    command: Callable[[Path, int], Sequence[str]]
    secure: bool = False


@frozen
class Server:
    """A running server."""

    name: str
    secure: bool
    port: int
    pid: int

    def cpu(self) -> int:
        """Return the CPU time of all processes of the server so far, in nanoseconds."""
        return sum(map(_cpu_time, _process_tree(self.pid)))


@contextmanager
def running(program: Program, home: Path) -> Iterator[Server]:
    """Run a server on CPU 0, and yield it as soon as it accepts connections."""
    # Not every server can bind port 0 and report its port, so a free port is found first.
    with socket.create_server((HOST, 0)) as listener:
        port = listener.getsockname()[1]
    command = ["taskset", "-c", "0", *program.command(home, port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + TIMEOUT
            while True:
                try:
                    socket.create_connection((HOST, port)).close()
                    break
                except ConnectionRefusedError:
                    if process.poll() is not None or time.monotonic() > deadline:
                        raise
                    time.sleep(0.02)
            yield Server(program.name, program.secure, port, process.pid)
        finally:
            process.terminate()


def find_programs(options: Options) -> tuple[list[Program], list[str]]:
    """Find the servers, and install those that are Python packages.

    Returns:
        The servers' programs, and the versions of all software that runs in them.

    """
    found = [
        Program("iobatch.httpd", httpd_command),
        Program("iobatch.httpd", partial(httpd_command, secure=True), secure=True),
    ]
    versions = [f"Python {sys.version.split()[0]}"]
    # On Debian nginx is in /usr/sbin, which is not in an ordinary user's PATH.
    if nginx := shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin"):
        found += [
            Program("nginx", partial(_nginx_command, nginx)),
            Program("nginx", partial(_nginx_command, nginx, tls=" ssl"), secure=True),
        ]
        output = subprocess.run([nginx, "-v"], check=True, capture_output=True, text=True).stderr
        versions.append(output.split(": ")[1].strip().replace("/", " "))
    else:
        report_missing(options, "nginx", "apt-get install nginx-light")
    peers, their_versions = _find_peers(
        options, {name: name for name in ("granian", "aiohttp", "tornado", "twisted", "uvicorn")}
    )
    return found + peers, versions + their_versions


def find_asgi_programs(options: Options) -> tuple[list[Program], list[str]]:
    """Find the servers of ASGI applications; return the same as find_programs()."""
    ours = [
        f"Python {sys.version.split()[0]}",
        f"starlette {version('starlette')} in asgi_server.py",
    ]
    peers, versions = _find_peers(options, {"uvicorn": "asgi_uvicorn", "granian": "asgi_granian"})
    return [Program("asgi_server.py", _asgi_server_command), *peers], ours + versions


def _find_peers(options: Options, names: dict[str, str]) -> tuple[list[Program], list[str]]:
    """Install the Python servers; return them, by the names of httpd_peers.py, and the versions."""
    python = str(VENV / "bin" / "python")
    try:
        if not VENV.exists():
            venv.create(VENV, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *REQUIREMENTS], check=True)
    except subprocess.CalledProcessError as exc:
        report_missing(options, ", ".join(REQUIREMENTS), str(exc))
        return [], []
    found = [Program(name, partial(_peer_command, python, peer)) for name, peer in names.items()]
    return found, subprocess.check_output([python, "-c", VERSIONS], text=True).splitlines()


def create_certificate(home: Path) -> ssl.SSLContext:
    """Create a certificate and its key; return a client context that trusts the certificate."""
    authority = trustme.CA()
    certificate = authority.issue_cert(HOST)
    certificate.private_key_pem.write_to_path(home / "key.pem")
    for pem in certificate.cert_chain_pems:
        pem.write_to_path(home / "cert.pem", append=True)
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    return trust


def httpd_command(home: Path, port: int, *, secure: bool = False) -> list[str]:
    """Return the command that runs iobatch.httpd as a Program."""
    files = f"{home}/files"
    command = [sys.executable, "-m", "iobatch.httpd", files, "--port", str(port), "--quiet"]
    return [*command, "--tls", f"{home}/cert.pem", f"{home}/key.pem"] if secure else command


def _nginx_command(nginx: str, home: Path, port: int, *, tls: str = "") -> list[str]:
    config = home / f"nginx-{port}.conf"
    config.write_text(NGINX.format(home=home, host=HOST, port=port, tls=tls))
    return [nginx, "-p", str(home), "-e", "stderr", "-c", str(config)]


def _peer_command(python: str, name: str, home: Path, port: int) -> list[str]:
    program = str(Path(__file__).with_name("httpd_peers.py"))
    return [python, program, name, f"{home}/files", str(port)]


def _asgi_server_command(home: Path, port: int) -> list[str]:
    program, app = str(ROOT / "examples" / "asgi_server.py"), "tests.bench.asgi_app:app"
    return ["env", f"ASGI_FOLDER={home}/files", sys.executable, program, app, "--port", str(port)]


def _process_tree(pid: int) -> Iterator[int]:
    """Yield the ids of a process and its descendants."""
    yield pid
    for thread in Path(f"/proc/{pid}/task").iterdir():
        for child in (thread / "children").read_text().split():
            yield from _process_tree(int(child))


def _cpu_time(pid: int) -> int:
    """Return the CPU time of a process, in nanoseconds.

    Its CPU-time clock is exact; /proc/PID/stat counts in clock ticks of 10 ms.
    """
    clock = ctypes.c_int()
    if code := ctypes.CDLL(None).clock_getcpuclockid(pid, ctypes.byref(clock)):
        raise OSError(code, os.strerror(code))
    return time.clock_gettime_ns(clock.value)
