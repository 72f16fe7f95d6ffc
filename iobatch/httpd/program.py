"""The program: it opens what the options name, and serves until it is stopped."""

from __future__ import annotations

import os
import socket
import sys
from typing import TYPE_CHECKING

from iobatch.httpd.accesslog import AccessLog
from iobatch.httpd.authentication import Authentication
from iobatch.httpd.cache import FileCache
from iobatch.httpd.fallbacks import page_names
from iobatch.httpd.files import Files
from iobatch.httpd.headerfields import HeaderFields
from iobatch.httpd.listeners import is_local, listen, listen_unix, unlink_unix, url
from iobatch.httpd.options import parse_args
from iobatch.httpd.output import STDERR, Output, report
from iobatch.httpd.process import prepare_process
from iobatch.httpd.server import Server
from iobatch.httpd.settings import Settings
from iobatch.httpd.tls import self_signed_context, tls_context
from iobatch.httpd.workers import Supervisor, stop_socket

if TYPE_CHECKING:
    import ssl
    from argparse import Namespace

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
    if args.log and sys.stdout is None:
        return _fail("--log: the standard output is closed", status=2)
    max_descriptors = prepare_process()
    needed = MIN_DESCRIPTORS + 2 * args.workers
    if max_descriptors < needed:
        return _fail(f"at least {needed} descriptors are needed: see ulimit -n", status=1)
    try:
        context = _tls_context(args)
    except OSError as exc:
        option = f"--tls {' '.join(args.tls)}" if args.tls else "--self-signed"
        reason = f"{exc.filename}: {exc.strerror}" if exc.filename else exc.strerror
        return _fail(f"{option}: {reason}", status=2)
    try:
        served = Files(
            args.directory,
            listing=args.listing,
            compress=args.compress,
            clean_urls=args.clean_urls,
            follow_links=args.follow_links,
            dot_files=args.dot_files,
        )
    except OSError as exc:
        return _fail(f"{args.directory}: {exc.strerror}", status=2)
    try:
        page = page_names(served, args.spa) if args.spa else ()
    except OSError as exc:
        return _fail(f"--spa {args.spa}, in {args.directory}: {exc.strerror}", status=2)
    files = FileCache(served, page)
    settings = Settings(
        # The other half is left to files.
        max_connections=min(args.max_connections, max_descriptors // 2),
        rate=args.limit_rate,
        grace=args.grace,
        tls=context,
        log=AccessLog(1, args.log == "combined", args.users is not None) if args.log else None,
        header_fields=HeaderFields(args.header) if args.header else None,
        authentication=Authentication(args.users) if args.users else None,
    )

    def new_server(listener: socket.socket, stop: socket.socket) -> Server:
        return Server(listener, files, settings, stop)

    try:
        listeners = _listeners(args)
        created = os.open(args.unix, os.O_PATH) if args.unix else -1
        stop = stop_socket()
        if len(listeners) > 1:
            server: Server | Supervisor = Supervisor(listeners, stop, new_server)
        else:
            server = new_server(listeners[0], stop)
    except OSError as exc:
        address = args.unix or f"{args.bind} port {args.port}"
        return _fail(f"{address}: {exc.strerror or exc}", status=1)
    if args.users and context is None and not is_local(listeners[0]):
        report("warning: passwords go over plain HTTP, which others can read; see --tls")
        STDERR.finish()  # workers are forked without a thread
    if not args.quiet:
        address = url(listeners[0], secure=context is not None)
        # A file's name may have bytes that the output's encoding can't represent.
        line = os.fsencode(f"Serving {args.directory} on {address} (Ctrl-C stops it)\n")
        output = STDERR if args.log else Output(1)
        output.write(line)
        output.resume()
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


def _listeners(args: Namespace) -> list[socket.socket]:
    """Return a listening socket for each worker."""
    if args.unix:
        listener = listen_unix(args.unix)
        return [listener, *(listener.dup() for _ in range(args.workers - 1))]
    if args.workers > 1:
        # SO_REUSEPORT would share the port with the workers of another server, without an error.
        listen(args.bind, args.port).close()
    listeners: list[socket.socket] = []
    port = args.port
    for _ in range(args.workers):
        listeners.append(listen(args.bind, port, shared=args.workers > 1))
        port = listeners[0].getsockname()[1]
    return listeners


def _fail(message: str, *, status: int) -> int:
    report(message)
    return status
