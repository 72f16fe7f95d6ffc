"""The program: it opens what the options name, and serves until it is stopped."""

from __future__ import annotations

import os
import socket
import sys
from contextlib import contextmanager
from signal import SIGHUP
from typing import TYPE_CHECKING, NoReturn

from iobatch.httpd.accesslog import AccessLog
from iobatch.httpd.authentication import Authentication
from iobatch.httpd.cache import FileCache
from iobatch.httpd.fallbacks import page_names
from iobatch.httpd.files import Files
from iobatch.httpd.headerfields import HeaderFields
from iobatch.httpd.listeners import (
    is_local,
    listen_for_workers,
    listen_unix,
    share,
    unlink_unix,
    urls,
)
from iobatch.httpd.options import parse_args
from iobatch.httpd.output import STDERR, Output, open_log, report
from iobatch.httpd.process import prepare_process
from iobatch.httpd.proxies import TrustedProxies
from iobatch.httpd.server import Server
from iobatch.httpd.settings import Settings
from iobatch.httpd.signals import STOP_SIGNALS, signal_socket
from iobatch.httpd.systemd import inherited_listener, notify
from iobatch.httpd.tls import self_signed_context, tls_context
from iobatch.httpd.workers import Supervisor

if TYPE_CHECKING:
    import ssl
    from argparse import Namespace
    from collections.abc import Generator

# The descriptors of a process that serves few clients. Each worker takes two more at the start.
MIN_DESCRIPTORS = 24


def main() -> int:
    """Serve until SIGINT or SIGTERM; return the exit status."""
    args = parse_args()
    try:
        return _run(args)
    finally:
        STDERR.finish()


def _run(args: Namespace) -> int:
    if _logs_to_stdout(args) and sys.stdout is None:
        _fail("--log: the standard output is closed", status=2)
    with _failing("LISTEN_FDS", status=2):
        inherited = inherited_listener()
    if inherited is not None and args.address_options:
        _fail(f"{args.address_options[0]}: not allowed with LISTEN_FDS", status=2)
    max_descriptors = prepare_process()
    needed = MIN_DESCRIPTORS + 2 * args.workers
    if max_descriptors < needed:
        _fail(f"at least {needed} descriptors are needed: see ulimit -n", status=1)
    try:
        context = _tls_context(args)
    except OSError as exc:
        option = f"--tls {' '.join(args.tls)}" if args.tls else "--self-signed"
        reason = f"{exc.filename}: {exc.strerror}" if exc.filename else exc.strerror
        _fail(f"{option}: {reason}", status=2)
    with _failing(args.directory, status=2):
        served = Files(
            args.directory,
            listing=args.listing,
            compress=args.compress,
            clean_urls=args.clean_urls,
            follow_links=args.follow_links,
            dot_files=args.dot_files,
        )
    with _failing(f"--spa {args.spa}, in {args.directory}", status=2):
        page = page_names(served, args.spa) if args.spa else ()
    files = FileCache(served, page)
    with _failing(f"--log-file {args.log_file}", status=2):
        log = _open_log(args)
    settings = Settings(
        # The other half is left to files.
        max_connections=min(args.max_connections, max_descriptors // 2),
        rate=args.limit_rate,
        grace=args.grace,
        tls=context,
        log=log,
        header_fields=HeaderFields(args.header) if args.header else None,
        authentication=Authentication(args.users) if args.users else None,
    )

    def new_server(listener: socket.socket, signals: socket.socket) -> Server:
        return Server(listener, files, settings, signals)

    with _failing(args.unix or f"{args.bind} port {args.port}", status=1):
        listeners = _listeners(args, inherited)
        created = os.open(args.unix, os.O_PATH) if args.unix else -1
        signals = signal_socket((*STOP_SIGNALS, SIGHUP) if args.log_file else STOP_SIGNALS)
        if len(listeners) > 1:
            server: Server | Supervisor = Supervisor(listeners, signals, new_server, log)
        else:
            server = new_server(listeners[0], signals)
    if args.users and context is None and not is_local(listeners[0]):
        report("warning: passwords go over plain HTTP, which others can read; see --tls")
    if not args.quiet:
        _announce(args, urls(listeners[0], secure=context is not None))
    STDERR.finish()  # workers are forked without a thread
    notify("READY=1")
    server.run()
    server.close()
    files.close()
    if args.unix:
        unlink_unix(args.unix, created)
    return 0


def _tls_context(args: Namespace) -> ssl.SSLContext | None:
    """Return the TLS context that the options ask for; None: plain HTTP."""
    if args.tls:
        return tls_context(*args.tls)
    if args.self_signed:
        names = {"localhost", "127.0.0.1", "::1", socket.gethostname(), args.bind}
        return self_signed_context(names)
    return None


def _logs_to_stdout(args: Namespace) -> bool:
    return args.log in {"common", "combined"} and not args.log_file


def _open_log(args: Namespace) -> AccessLog | None:
    """Return the log that the options ask for; None: there is none."""
    if args.log_file:
        output = Output(open_log(args.log_file), args.log_file)
    elif _logs_to_stdout(args):
        output = Output(1)
    elif args.log is None and not args.quiet and os.isatty(2):
        output = STDERR
    else:
        return None
    proxies = TrustedProxies(args.trusted_proxy) if args.trusted_proxy else None
    return AccessLog(output, args.log == "combined", args.users is not None, proxies)


def _listeners(args: Namespace, inherited: socket.socket | None) -> list[socket.socket]:
    """Return a listening socket for each worker."""
    if inherited is not None:
        return share(inherited, args.workers)
    if args.unix:
        return share(listen_unix(args.unix), args.workers)
    return listen_for_workers(args.bind, args.port, args.workers)


def _announce(args: Namespace, addresses: list[str]) -> None:
    """Print what is served, and its URLs."""
    first, *others = addresses
    lines = [f"Serving {args.directory} on {first} (Ctrl-C stops it)\n"]
    lines += [f"  and on {each}\n" for each in others]
    output = STDERR if _logs_to_stdout(args) else Output(1)
    # A file's name may have bytes that the output's encoding can't represent.
    output.write(os.fsencode("".join(lines)))
    output.finish()


@contextmanager
def _failing(what: str, *, status: int) -> Generator[None]:
    """End the program with a diagnostic if the block raises an OSError."""
    try:
        yield
    except OSError as exc:
        _fail(f"{what}: {exc.strerror or exc}", status=status)


def _fail(message: str, *, status: int) -> NoReturn:
    report(message)
    sys.exit(status)
