"""A static file server: `python examples/httpd DIRECTORY`; --help says what else there is."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys

from files import Files
from secure import tls_context
from server import Server, listen, url
from settings import Settings


def port_number(text: str) -> int:
    """Return a port from the command line."""
    if not text.isdecimal() or int(text) > 0xFFFF:
        raise argparse.ArgumentTypeError("a port is a number from 0 to 65535")
    return int(text)


def main() -> int:
    """Serve until SIGINT or SIGTERM; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="httpd", description="Serve the files of a directory over HTTP."
    )
    parser.add_argument("directory", help="what to serve; nothing outside of it is")
    parser.add_argument(
        "--bind", metavar="ADDR", default="127.0.0.1", help="address to listen on (%(default)s)"
    )
    parser.add_argument(
        "--port",
        metavar="N",
        type=port_number,
        default=8000,
        help="port to listen on (%(default)s); 0: any that is free",
    )
    parser.add_argument(
        "--tls",
        nargs=2,
        metavar=("CERT", "KEY"),
        help="serve over TLS: the PEM files with the certificate chain and its private key",
    )
    parser.add_argument(
        "--no-listing",
        dest="listing",
        action="store_false",
        help="don't show what is in a directory that has no index.html",
    )
    args = parser.parse_args()
    context = None
    if args.tls:
        try:
            context = tls_context(*args.tls)
        except OSError as exc:
            print(f"httpd: --tls {' '.join(args.tls)}: {exc.strerror or exc}", file=sys.stderr)
            return 2
    try:
        files = Files(args.directory, listing=args.listing)
    except OSError as exc:
        print(f"httpd: {args.directory}: {exc.strerror}", file=sys.stderr)
        return 2
    try:
        listener = listen(args.bind, args.port)
    except OSError as exc:
        # What create_server says more than the reason is said here already.
        unknown = isinstance(exc, socket.gaierror)
        reason = exc.strerror if unknown else os.strerror(exc.errno or 0)
        print(f"httpd: {args.bind} port {args.port}: {reason}", file=sys.stderr)
        return 1
    server = Server(listener, files, Settings(tls=context))
    # The handlers do nothing, and are installed so that the signals, even if they were ignored,
    # write a byte to the descriptor, which stops the loop.
    signal.set_wakeup_fd(server.stopper.fileno())
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    print(
        f"Serving {args.directory} on {url(listener, secure=bool(context))} (Ctrl-C stops it)",
        flush=True,
    )
    server.run()
    server.close()
    files.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
