"""The command line's options."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from typing import TYPE_CHECKING

from iobatch.httpd.headerfields import parse_rule
from iobatch.httpd.users import parse_user, read_users

if TYPE_CHECKING:
    from collections.abc import Callable


def parse_args() -> Namespace:
    """Return the command line's arguments, or exit with a message."""
    parser = ArgumentParser(
        prog="python -m iobatch.httpd", description="Serve the files of a directory over HTTP."
    )
    parser.add_argument(
        "directory", type=_path, help="the directory to serve; nothing outside it is served"
    )
    address = parser.add_argument_group("address")
    address.add_argument(
        "--bind",
        metavar="ADDR",
        default="127.0.0.1",
        help="the address to listen on (%(default)s); :: means all addresses",
    )
    address.add_argument(
        "--port",
        metavar="N",
        type=_number(0, 0xFFFF),
        default=8000,
        help="the port to listen on (%(default)s); 0 means any free port",
    )
    address.add_argument(
        "--unix", metavar="PATH", type=_path, help="listen on a Unix socket instead"
    )
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
        help="require the password of a user in this file of lines USER:HASH; "
        "'python -m iobatch.httpd.password USER' makes a line",
    )
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
        help="connections of each worker; for a further one the longest idle connection is closed, "
        "and if none is idle it gets 503, or is closed if it uses TLS "
        "(%(default)s, at most half of the worker's descriptors)",
    )
    limits.add_argument(
        "--limit-rate",
        metavar="BYTES",
        type=_number(1, 10**12),
        help="bytes per second on a connection (no limit)",
    )
    limits.add_argument(
        "--grace",
        metavar="SECONDS",
        type=_number(0, 10**6),
        default=10,
        help="time to finish responses after SIGINT or SIGTERM (%(default)s); a second signal "
        "cuts them off",
    )
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
        help="send this file of the directory (%(const)s) for pages that are not there, as a "
        "single-page application needs it",
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
        help="add a header field to responses: 'NAME: VALUE' for every path, or '/PATTERN NAME: "
        "VALUE'; can be repeated, and the last one for a name counts",
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "--log",
        choices=("common", "combined"),
        help="write a line for each response to the standard output, in this format; the server's "
        "URL then goes to the standard error output",
    )
    output.add_argument("--quiet", action="store_true", help="don't print the server's URL")
    return parser.parse_args()


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
