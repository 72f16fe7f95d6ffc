"""The two forms of the hot path.

Each test runs in the form that iobatch has, and most facts are true of both forms. Two differ:

- The pure form looks up names when it runs, so a test can replace them: a function of a module, a
  limit, a step of a send. The compiled form does not. A test that replaces one calls pure(function).
  The system calls can be replaced in both forms: see patch_os().
- If a signal handler raises an exception after a system call, the pure form may not know how many
  bytes were sent, and the batch fails. The compiled form always knows. A test of such exceptions
  runs for each of forms(function), and is_compiled(function) says what it expects.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Callable

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
