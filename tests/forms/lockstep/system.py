"""The system calls of both sides, which follow their scripts."""

from __future__ import annotations

import errno
import os
import socket
import sys
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from tests.forms.lockstep.sides import BAD, GOOD, Side, describe_error
from tests.support.fakes import SYSTEM_CALLS, patch_os

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import pytest

# `active` is the side whose turn it is.
SYSTEM = SimpleNamespace(active=None)


def install(patch: pytest.MonkeyPatch, sides: tuple[Side, Side]) -> None:
    """Have the system calls of both sides follow their scripts."""
    real_close, real_write = os.close, os.write

    def close(fd: int) -> None:
        if fd < GOOD:
            return real_close(fd)
        SYSTEM.active.log.append(("close", fd))
        if fd == BAD:
            raise OSError(errno.EIO, "bad")
        return None

    def write(fd: int, piece: Any) -> int:
        if SYSTEM.active is None or fd != SYSTEM.active.sock.fileno():
            return real_write(fd, piece)
        return SYSTEM.active.take("write", (piece,))  # type: ignore[no-any-return]

    def writev(_fd: int, pieces: Iterable[Any]) -> int:
        return SYSTEM.active.take("writev", pieces)  # type: ignore[no-any-return]

    def pread(*args: int) -> bytes:
        return SYSTEM.active.pread(*args)  # type: ignore[no-any-return]

    def sendfile(*args: int) -> int:
        return SYSTEM.active.sendfile(*args)  # type: ignore[no-any-return]

    for fake in (close, write, writev, pread, sendfile):
        patch_os(patch, fake.__name__, fake, sides[1].modules.values())
    replace_method(patch, "send", send_by_script)
    replace_method(patch, "sendmsg", sendmsg_by_script)
    replace_method(patch, "getsockopt", Side.getsockopt)
    replace_method(patch, "setsockopt", Side.setsockopt)
    patch.setattr(SYSTEM_CALLS, "send", partial(call_active, send_by_script))
    patch.setattr(SYSTEM_CALLS, "sendmsg", partial(call_active, sendmsg_by_script))
    patch.setattr(
        sys,
        "unraisablehook",
        lambda args: SYSTEM.active.log.append(("unraisable", describe_error(args.exc_value))),
    )


def replace_method(patch: pytest.MonkeyPatch, name: str, fake: Callable[..., Any]) -> None:
    """Replace a method of all sockets, for the socket of the side whose turn it is."""
    real = getattr(socket.socket, name)

    def call(sock: socket.socket, *args: Any) -> Any:
        if SYSTEM.active is None or sock is not SYSTEM.active.sock:
            return real(sock, *args)
        return fake(SYSTEM.active, *args)

    patch.setattr(socket.socket, name, call)


def send_by_script(side: Side, piece: Any, flags: int = 0) -> int:
    return side.take("send", (piece,), flags)


def sendmsg_by_script(side: Side, pieces: Any, *rest: Any) -> int:
    """Do as socket.sendmsg, whose flags follow the ancillary data, or as the compiled form."""
    flags = rest[1] if len(rest) > 1 else rest[0] if rest else 0
    return side.take("sendmsg", pieces, flags)


def call_active(take: Callable[..., int], _fd: int, *args: Any) -> int:
    return take(SYSTEM.active, *args)
