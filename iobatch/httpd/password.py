"""Make a line for --auth-file: `python -m iobatch.httpd.password USER`."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser
from getpass import getpass

from iobatch.httpd.scrypt import new_hash
from iobatch.httpd.users import is_sendable


def main() -> None:
    """Read a password, and print the line."""
    parser = ArgumentParser(
        prog="python -m iobatch.httpd.password",
        description="Print a user's line for --auth-file of iobatch.httpd. The password is asked "
        "for on a terminal; otherwise it is the first line of the standard input.",
    )
    parser.add_argument("user", help="the user's name")
    user: str = parser.parse_args().user
    if not is_sendable(user) or ":" in user or user.startswith("#"):
        parser.error(
            "the user must be UTF-8 without control characters and colons, and not begin with #"
        )
    try:
        password = _read()
        if not is_sendable(password):
            parser.error("the password must not be empty, and be UTF-8 without control characters")
        with os.fdopen(1, "wb", closefd=False) as output:
            output.write(f"{user}:{new_hash(password.encode())}\n".encode())
    except (EOFError, KeyboardInterrupt):
        sys.exit("\niobatch.httpd.password: no password")
    except OSError as exc:
        sys.exit(f"iobatch.httpd.password: {exc.strerror}")


def _read() -> str:
    if not os.isatty(0):
        with os.fdopen(0, "rb", closefd=False) as source:
            line = source.readline().decode(errors="surrogateescape")
        return line.removesuffix("\n").removesuffix("\r")
    password = getpass("Password: ")
    if getpass("Again: ") != password:
        sys.exit("iobatch.httpd.password: the passwords differ")
    return password


if __name__ == "__main__":
    main()
