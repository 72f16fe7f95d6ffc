"""The servers that httpd, asgi and hostile measure: commands, configurations, a certificate."""

from __future__ import annotations

import os
import shutil
import ssl
import subprocess
import sys
import venv
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import trustme

from tests.bench.httpd_processes import HOST, Program
from tests.bench.report import report_missing

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.bench.httpd_processes import Setup
    from tests.bench.report import Options

ROOT = Path(__file__).parents[2]
OURS = "iobatch.httpd"
NGINX = "nginx"
NGINX_UNCACHED = "nginx, no open_file_cache"
GRANIAN = "granian"
IN_PYTHON = ("aiohttp", "tornado", "twisted", "uvicorn")
# The highest level of zlib that does not make smaller bodies of httpd_wrk's text than iobatch.httpd
# makes with isal: theirs have 94 % of its size.
GZIP_LEVEL = 3
# The Python servers are installed outside the project's environment, and kept between runs.
VENV = ROOT / ".venv-httpd-peers"
REQUIREMENTS = ("aiohttp", "granian", "starlette", "tornado", "twisted", "uvicorn[standard]")
VERSIONS = """
from importlib.metadata import version
for name in "granian aiohttp tornado twisted uvicorn starlette uvloop httptools".split():
    print(name, version(name))
"""

NGINX_CONFIGURATION = """\
daemon off;
worker_processes 1;
pid {home}/nginx-{port}.pid;
events {{ worker_connections 16384; }}
http {{
    access_log off;
    default_type application/octet-stream;
    types {{ text/plain txt; }}
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
    server {{
        listen {host}:{port}{tls};
        {settings}
    }}
}}
"""


def find_programs(options: Options) -> tuple[list[Program], list[str]]:
    """Find the servers, and install those that are Python packages.

    Returns:
        The servers' programs, and the versions of all software that runs in them.

    """
    setups: Iterable[Setup] = ("plain", "TLS", "log", "gzip")
    found = [httpd_program(setup) for setup in setups]
    versions = [f"Python {sys.version.split()[0]}"]
    # On Debian nginx is in /usr/sbin, which is not in an ordinary user's PATH.
    if nginx := shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin"):
        found += _nginx_programs(nginx)
        output = subprocess.run([nginx, "-v"], check=True, capture_output=True, text=True).stderr
        versions.append(output.split(": ")[1].strip().replace("/", " "))
    else:
        report_missing(options, "nginx", "apt-get install nginx-light")
    peers, their_versions = _find_peers(options, {name: name for name in (GRANIAN, *IN_PYTHON)})
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


def httpd_program(setup: Setup = "plain") -> Program:
    """Return the program iobatch.httpd."""

    def command(home: Path, port: int) -> list[str]:
        words = [sys.executable, "-m", "iobatch.httpd", f"{home}/files", "--port", str(port)]
        if setup == "TLS":
            words += ["--tls", f"{home}/cert.pem", f"{home}/key.pem"]
        elif setup == "log":
            words += ["--log", "combined"]
        return [*words, "--quiet"]

    return Program(OURS, command, setup)


def _nginx_programs(nginx: str) -> list[Program]:
    """Return the programs of nginx, whose command is given."""

    def command(home: Path, port: int, *, tls: str = "", settings: str = "") -> list[str]:
        config = home / f"nginx-{port}.conf"
        config.write_text(
            NGINX_CONFIGURATION.format(home=home, host=HOST, port=port, tls=tls, settings=settings)
        )
        return [nginx, "-p", str(home), "-e", "stderr", "-c", str(config)]

    coded = f"gzip on; gzip_comp_level {GZIP_LEVEL}; gzip_min_length 1024; gzip_types text/plain;"
    return [
        Program(NGINX, command),
        Program(NGINX_UNCACHED, partial(command, settings="open_file_cache off;")),
        Program(NGINX, partial(command, tls=" ssl"), "TLS"),
        Program(NGINX, partial(command, settings="access_log /dev/stdout;"), "log"),
        Program(NGINX, partial(command, settings=coded), "gzip"),
    ]


def _peer_command(python: str, name: str, home: Path, port: int) -> list[str]:
    program = str(Path(__file__).with_name("httpd_peers.py"))
    return [python, program, name, f"{home}/files", str(port)]


def _asgi_server_command(home: Path, port: int) -> list[str]:
    program, app = str(ROOT / "examples" / "asgi_server.py"), "tests.bench.asgi_app:app"
    return ["env", f"ASGI_FOLDER={home}/files", sys.executable, program, app, "--port", str(port)]
