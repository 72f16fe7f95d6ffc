"""The two forms of the hot path.

Each test runs in the form that iobatch has, and most facts are true of both forms. Two differ:

- The pure form looks up names when it runs, so a test can replace a function of a module, or a
  step of a send. The compiled form does not. A test that replaces one calls pure(function). The
  system calls and COPY_LIMIT can be replaced in both forms: see patch_os() and copy_limit().
- If a signal handler raises an exception after a system call, the pure form may not know how many
  bytes were sent, and the batch fails. The compiled form of iob_send always knows, except where
  it leaves the call to the pure form: descriptors, flags, sockets with a timeout. A test of such
  exceptions runs for each of forms(function), and is_compiled(function) says what it expects.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar, cast

import pytest

from iobatch import iob_send
from iobatch._forms import speedups

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Function = TypeVar("Function", bound="Callable[..., Any]")


def pure(function: Function) -> Function:
    """Return the pure form of a function."""
    return cast("Function", getattr(function, "__wrapped__", function))


def is_compiled(function: Callable[..., Any]) -> bool:
    return pure(function) is not function


def forms(function: Function) -> list[Function]:
    """Return the form of a function that iobatch uses, and the pure form if that is another one."""
    return [function, pure(function)] if is_compiled(function) else [function]


def name_of_form(function: Callable[..., Any]) -> str:
    """Return an ID for pytest."""
    return f"{'compiled' if is_compiled(function) else 'pure'} {function.__name__}"


@contextmanager
def copy_limit(nbytes: int) -> Iterator[None]:
    """Change COPY_LIMIT."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("iobatch._send.COPY_LIMIT", nbytes)
        _connect()
        yield
    _connect()


def _connect() -> None:
    """Have the compiled form look up the limits again."""
    if speedups is not None:
        speedups.connect_iob_send(pure(iob_send))
