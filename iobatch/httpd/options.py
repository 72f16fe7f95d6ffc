"""The command line's options."""

from __future__ import annotations

import re
from argparse import ArgumentParser, ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from pathlib import Path
from typing import TYPE_CHECKING

from iobatch.httpd.headerfields import parse_rule
from iobatch.httpd.proxies import parse_proxy
from iobatch.httpd.users import parse_user, read_users

if TYPE_CHECKING:
    from collections.abc import Callable

    from iobatch.httpd.proxies import Proxy

DEFAULT_ADDRESS = "127.0.0.1"
DEFAULT_PORT = 8000
# The decimal units are those of listings.
_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
_EXAMPLES = """\
examples:
  Show the current directory to the local network:
    python -m iobatch.httpd -b ::
  Serve a site over TLS by two processes, with a log:
    python -m iobatch.httpd --tls chain.pem key.pem -b :: -p 443 --workers 2 \\
        --log-file access.log /srv/site
"""


def parse_args() -> Namespace:
    """Return the command line's arguments, or exit with a message.

    `address_options` has the names of the options given that choose the address.
    """
    parser = ArgumentParser(
        prog="python -m iobatch.httpd",
        usage="%(prog)s [OPTION]... [DIRECTORY]",
        description="Serve the files of a directory over HTTP.",
        epilog=_EXAMPLES,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "directory",
        metavar="DIRECTORY",
        nargs="?",
        default=".",
        type=_path,
        help="what to serve, and nothing outside it (the current directory)",
    )
    for add in (_add_address, _add_tls, _add_access, _add_limits, _add_files, _add_output):
        add(parser)
    args = parser.parse_args()
    directory: str = args.directory
    if directory.isdecimal() and not Path(directory).exists():  # http.server takes a port here
        parser.error(f"argument DIRECTORY: there is no {directory}; for the port use -p")
    if args.log == "none" and args.log_file:
        parser.error("argument --log: none is not allowed with --log-file")
    address_options = ("bind", "port", "unix")
    args.address_options = [f"--{each}" for each in address_options if vars(args)[each] is not None]
    if args.bind is None:
        args.bind = DEFAULT_ADDRESS
    if args.port is None:
        args.port = DEFAULT_PORT
    return args


def _add_address(parser: ArgumentParser) -> None:
    address = parser.add_argument_group("address")
    address.add_argument(
        "-b",
        "--bind",
        metavar="ADDR",
        help=f"the address to listen on ({DEFAULT_ADDRESS}); :: means all",
    )
    address.add_argument(
        "-p",
        "--port",
        metavar="N",
        type=_number(0, 0xFFFF),
        help=f"the port to listen on ({DEFAULT_PORT}); 0 means any free port",
    )
    address.add_argument(
        "--unix", metavar="PATH", type=_path, help="listen on a Unix socket instead"
    )


def _add_tls(parser: ArgumentParser) -> None:
    tls = parser.add_argument_group("TLS").add_mutually_exclusive_group()
    tls.add_argument(
        "--tls",
        nargs=2,
        metavar=("CERT", "KEY"),
        help="serve over TLS, with the certificate chain and private key in these PEM files",
    )
    tls.add_argument(
        "--self-signed",
        action="store_true",
        help="serve over TLS, with a new certificate that browsers warn about",
    )


def _add_access(parser: ArgumentParser) -> None:
    access = parser.add_argument_group("access").add_mutually_exclusive_group()
    access.add_argument(
        "--auth",
        dest="users",
        metavar="USER:PASSWORD",
        type=parse_user,
        help="require this user's password, which the list of processes shows",
    )
    access.add_argument(
        "--auth-file",
        dest="users",
        metavar="FILE",
        type=read_users,
        help="require the password of a user in this file; its lines are made by "
        "python -m iobatch.httpd.password USER",
    )


def _add_limits(parser: ArgumentParser) -> None:
    limits = parser.add_argument_group("limits")
    limits.add_argument(
        "--workers",
        metavar="N",
        type=_number(1, 1024),
        default=1,
        help="worker processes (%(default)s)",
    )
    limits.add_argument(
        "--max-connections",
        metavar="N",
        type=_number(1, 10**6),
        default=10_000,
        help="connections of each worker (%(default)s); a further one takes the place of an idle "
        "one, or gets 503",
    )
    limits.add_argument(
        "--limit-rate",
        metavar="BYTES",
        type=_size(1, 10**12),
        help="bytes per second on a connection, such as 10k, 2M or 1Gi (no limit)",
    )
    limits.add_argument(
        "--grace",
        metavar="SECONDS",
        type=_number(0, 10**6),
        default=10,
        help="time to finish responses after Ctrl-C or SIGTERM (%(default)s)",
    )


def _add_files(parser: ArgumentParser) -> None:
    files = parser.add_argument_group("files")
    files.add_argument(
        "--no-compress",
        dest="compress",
        action="store_false",
        help="compress nothing, and send no compressed file in place of another",
    )
    files.add_argument(
        "--no-listing",
        dest="listing",
        action="store_false",
        help="answer 403 for a directory without an index.html, instead of listing it",
    )
    files.add_argument(
        "--spa",
        nargs="?",
        metavar="FILE",
        type=_path,
        const="index.html",
        help="send this file (%(const)s) in place of pages that are not there, for single-page "
        "applications",
    )
    files.add_argument(
        "--clean-urls",
        action="store_true",
        help="serve FILE.html for /FILE too, if there is no FILE",
    )
    files.add_argument(
        "--follow-links",
        action="store_true",
        help="follow symbolic links that lead out of the directory",
    )
    files.add_argument(
        "--dot-files",
        action="store_true",
        help="serve and list names that begin with a dot; they often hold secrets",
    )
    files.add_argument(
        "--header",
        metavar="FIELD",
        action="append",
        type=parse_rule,
        help="add a header field: 'NAME: VALUE' for every path, or '/PATTERN NAME: VALUE'; "
        "repeatable; the last counts",
    )


def _add_output(parser: ArgumentParser) -> None:
    output = parser.add_argument_group("output")
    output.add_argument(
        "--log",
        metavar="FORMAT",
        choices=("common", "combined", "none"),
        help="write a line for each response to the standard output: common or combined; none: "
        "not even to a terminal",
    )
    output.add_argument(
        "--log-file",
        metavar="FILE",
        type=_path,
        help="append the log to this file, and open it anew at SIGHUP",
    )
    output.add_argument(
        "--trusted-proxy",
        metavar="ADDR",
        type=_proxy,
        action="append",
        help="log the client that this proxy names: an address, a network, or unix; repeatable",
    )
    output.add_argument(
        "--quiet", action="store_true", help="print no URL, and no log on a terminal"
    )


def _number(least: int, most: int) -> Callable[[str], int]:
    """Return the type of an option that is a number from `least` to `most`."""

    def parse(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= most:
            raise ArgumentTypeError(f"must be a number from {least} to {most}")
        return int(text)

    return parse


def _path(text: str) -> str:
    if not text:
        raise ArgumentTypeError("must not be empty")
    return text


def _size(least: int, most: int) -> Callable[[str], int]:
    """Return the type of an option that is a number of bytes, which may have a unit."""

    def parse(text: str) -> int:
        found = re.fullmatch(r"(\d{1,20})([kMG]|[KMG]i)?", text, re.ASCII)
        size = int(found[1]) * _UNITS[found[2] or ""] if found else -1
        if not least <= size <= most:
            raise ArgumentTypeError(
                f"must be a number from {least} to {most}, which may end with k, M, G, Ki, Mi or Gi"
            )
        return size

    return parse


def _proxy(text: str) -> Proxy:
    try:
        return parse_proxy(text)
    except ValueError as exc:
        raise ArgumentTypeError(f"must be an address, a network or unix: {text}") from exc
