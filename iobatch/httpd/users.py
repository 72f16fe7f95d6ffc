"""The users of --auth and --auth-file, and their password hashes."""

from __future__ import annotations

from argparse import ArgumentTypeError
from pathlib import Path

from iobatch.httpd.controls import has_controls
from iobatch.httpd.scrypt import ScryptHash, new_hash, parse_hash


def is_sendable(text: str) -> bool:
    """Return whether a text may be a password, or a user if it has no colon."""
    return bool(text) and not has_controls(text)  # RFC 7617 2


def parse_user(text: str) -> dict[bytes, ScryptHash]:
    """Return the user of an argument "USER:PASSWORD".

    Raises:
        ArgumentTypeError: the argument has another form.

    """
    user, _, password = text.partition(":")
    if not is_sendable(user) or not is_sendable(password):
        raise ArgumentTypeError("must be USER:PASSWORD in UTF-8, without control characters")
    return {user.encode(): new_hash(password.encode())}


def read_users(path: str) -> dict[bytes, ScryptHash]:
    """Return the users of a file of lines "USER:HASH".

    Raises:
        ArgumentTypeError: the file can't be read, or has a line of another form.

    """
    try:
        # Some editors begin a file with the byte order mark.
        lines = Path(path).read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines()
    except OSError as exc:
        raise ArgumentTypeError(f"{path}: {exc.strerror}") from exc
    users: dict[bytes, ScryptHash] = {}
    for number, line in enumerate(lines, 1):
        try:
            text = line.decode(errors="surrogateescape").rstrip()
            if text and not text.startswith("#"):
                user, colon, hashed = text.partition(":")
                if not colon or not is_sendable(user):
                    raise ValueError("the line is not of the form USER:HASH, in UTF-8")
                if user.encode() in users:
                    raise ValueError(f"the user {user} has a line already")
                users[user.encode()] = parse_hash(hashed)
        except ValueError as exc:
            raise ArgumentTypeError(f"{path}: line {number}: {exc}") from exc
    if not users:
        raise ArgumentTypeError(f"{path}: there is no line USER:HASH")
    return users
