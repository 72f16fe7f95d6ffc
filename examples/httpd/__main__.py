"""A static file server: `python examples/httpd DIRECTORY`; --help says what else there is."""

from __future__ import annotations

import argparse
import os
import resource
import socket
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

try:
    from accesslog import AccessLog
    from files import Files
    from secure import self_signed, tls_context
    from server import Server, listen, listen_unix, unlink_unix, url
    from settings import Settings
    from workers import signals, supervise
except ModuleNotFoundError as exc:
    sys.exit(f"httpd: {exc.name} is missing: pip install 'iobatch[httpd]'")

if TYPE_CHECKING:
    import ssl


def number(text: str, least: int, most: int) -> int:
    """Return a number from the command line."""
    if not text.isdecimal() or not least <= int(text) <= most:
        raise argparse.ArgumentTypeError(f"a number from {least} to {most} is needed")
    return int(text)


def path(text: str) -> str:
    """Return a path from the command line."""
    if not text:
        raise argparse.ArgumentTypeError("a path is needed")
    return text


def parse_args() -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(
        prog="httpd", description="Serve the files of a directory over HTTP."
    )
    parser.add_argument("directory", type=path, help="what to serve; nothing outside of it is")
    where = parser.add_argument_group("where")
    where.add_argument(
        "--bind",
        metavar="ADDR",
        default="127.0.0.1",
        help="address to listen on (%(default)s); :: is all addresses",
    )
    where.add_argument(
        "--port",
        metavar="N",
        type=lambda text: number(text, 0, 0xFFFF),
        default=8000,
        help="port to listen on (%(default)s); 0: any that is free",
    )
    where.add_argument("--unix", metavar="PATH", type=path, help="listen on a Unix socket instead")
    tls = parser.add_argument_group("TLS").add_mutually_exclusive_group()
    tls.add_argument(
        "--tls",
        nargs=2,
        metavar=("CERT", "KEY"),
        help="serve over TLS: the PEM files with the certificate chain and its private key",
    )
    tls.add_argument(
        "--self-signed",
        action="store_true",
        help="serve over TLS, with a new certificate that browsers will warn of",
    )
    limits = parser.add_argument_group("limits")
    limits.add_argument(
        "--workers",
        metavar="N",
        type=lambda text: number(text, 1, 1024),
        default=1,
        help="processes that serve (%(default)s)",
    )
    limits.add_argument(
        "--max-connections",
        metavar="N",
        type=lambda text: number(text, 1, 10**6),
        default=10_000,
        help="connections of each process; more get 503 (%(default)s, at most half of its "
        "descriptors)",
    )
    limits.add_argument(
        "--limit-rate",
        metavar="BYTES",
        type=lambda text: number(text, 1, 10**12),
        help="bytes per second on a connection",
    )
    limits.add_argument(
        "--grace",
        metavar="SECONDS",
        type=lambda text: number(text, 0, 10**6),
        default=10,
        help="how long responses may go on after SIGINT or SIGTERM (%(default)s); a second signal "
        "cuts them off",
    )
    shown = parser.add_argument_group("what is shown")
    shown.add_argument(
        "--no-listing",
        dest="listing",
        action="store_false",
        help="don't show what is in a directory that has no index.html",
    )
    shown.add_argument(
        "--log", choices=("common", "combined"), help="write a line for each request to the output"
    )
    shown.add_argument("--quiet", action="store_true", help="don't say where it can be reached")
    return parser.parse_args()


def tls_of(args: argparse.Namespace) -> ssl.SSLContext | None:
    """Return what TLS needs; None: it isn't wanted."""
    if args.tls:
        return tls_context(*args.tls)
    if args.self_signed:
        return self_signed({"localhost", "127.0.0.1", "::1", socket.gethostname(), args.bind})
    return None


def listeners_of(args: argparse.Namespace) -> list[socket.socket]:
    """Return a listening socket for each worker."""
    if args.unix:
        listener = listen_unix(args.unix)
        return [listener, *(listener.dup() for _ in range(args.workers - 1))]
    if args.workers > 1:
        # The workers of another server would share their port, and nobody would be told.
        listen(args.bind, args.port).close()
    listeners: list[socket.socket] = []
    port = args.port
    for _ in range(args.workers):
        listeners.append(listen(args.bind, port, shared=args.workers > 1))
        port = listeners[0].getsockname()[1]
    return listeners


def descriptors() -> int:
    """Return how many descriptors this process may have, after asking for all that it can get."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def say(text: str) -> None:
    """Write a line to the output, if it takes that; a file's name in it may have any bytes."""
    if sys.stdout is not None:
        with suppress(OSError):
            os.write(sys.stdout.fileno(), os.fsencode(f"{text}\n"))


def main() -> int:
    """Serve until SIGINT or SIGTERM; return the exit status."""
    args = parse_args()
    if args.log and sys.stdout is None:
        print("httpd: --log: there is no output", file=sys.stderr)
        return 2
    try:
        context = tls_of(args)
    except OSError as exc:
        option = f"--tls {' '.join(args.tls)}" if args.tls else "--self-signed"
        reason = f"{exc.filename}: {exc.strerror}" if exc.filename else exc.strerror
        print(f"httpd: {option}: {reason}", file=sys.stderr)
        return 2
    try:
        files = Files(args.directory, listing=args.listing)
    except OSError as exc:
        print(f"httpd: {args.directory}: {exc.strerror}", file=sys.stderr)
        return 2
    room = descriptors()
    try:
        listeners = listeners_of(args)
        made = os.open(args.unix, os.O_PATH) if args.unix else -1
        stop = signals()
    except OSError as exc:
        place = args.unix or f"{args.bind} port {args.port}"
        print(f"httpd: {place}: {exc.strerror or exc}", file=sys.stderr)
        return 1
    settings = Settings(
        # Files need descriptors too.
        max_connections=min(args.max_connections, room // 2),
        rate=args.limit_rate,
        grace=args.grace,
        tls=context,
        log=AccessLog(sys.stdout.fileno(), args.log == "combined") if args.log else None,
    )
    if not args.quiet:
        place = url(listeners[0], secure=context is not None)
        say(f"Serving {args.directory} on {place} (Ctrl-C stops it)")

    def serve(listener: socket.socket, stop: socket.socket) -> None:
        server = Server(listener, files, settings, stop)
        server.run()
        server.close()
        if settings.log is not None:
            settings.log.flush()

    if len(listeners) > 1:
        supervise(listeners, stop, serve)
    else:
        serve(listeners[0], stop)
    files.close()
    if args.unix:
        unlink_unix(args.unix, made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
