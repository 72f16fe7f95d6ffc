"""The compiled form looks as the pure one does."""

from __future__ import annotations

import gc
import inspect
import json
from typing import Any

import pytest

from iobatch import COMPILED, IOBatch, iob_send
from iobatch.aio import BatchWriter
from tests.support.looks import report
from tests.support.programs import ROOT, run_python


@pytest.fixture(scope="module")
def looks() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the report of this process's form, and that of the pure form."""
    program = "from runpy import run_module; run_module('tests.support.looks', run_name='__main__')"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IOBATCH_PURE", "1")
        result = run_python(f"import sys; sys.path.append({str(ROOT)!r}); {program}")
    assert (result.stderr, result.returncode) == ("", 0)
    return json.loads(json.dumps(report())), json.loads(result.stdout)


@pytest.mark.parametrize("subject", ["names", "help", "classes", "errors"])
def test_both_forms_look_alike(subject: str, looks: tuple[dict[str, Any], dict[str, Any]]) -> None:
    ours, pure = (look[subject] for look in looks)
    differences = {
        name: (ours.get(name), pure.get(name))
        for name in {*ours, *pure}
        if ours.get(name) != pure.get(name)
    }
    assert differences == {}
    assert len(pure) > 8


def test_subclass_without_the_init_of_its_base_is_an_empty_batch_or_refuses_each_use() -> None:
    """The compiled form makes the core when it makes the object."""

    class Careless(IOBatch):
        def __init__(self) -> None:
            pass

    batch = Careless()
    uses = (
        lambda: batch.addbuf(b"abc"),
        lambda: batch.addbufs([b"abc"]),
        lambda: batch.addfile(0, 0, 3),
        lambda: iob_send(0, batch),
        lambda: batch.bytesleft,
        lambda: bool(batch),
        lambda: repr(batch),
        batch.reset,
    )
    if COMPILED:
        uses[0]()
        uses[1]()
        uses[2]()
        assert batch.bytesleft == 9
        batch.reset()
    else:
        for use in uses:
            with pytest.raises(AttributeError, match="_core"):
                use()


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(member, id=f"{cls.__name__}.{name}")
        for cls in (IOBatch, BatchWriter)
        for name, value in vars(cls).items()
        for member in (value.fget if isinstance(value, property) else value,)
        if inspect.isroutine(member) and not inspect.iscoroutinefunction(member)
        if name not in {"__init__", "__enter__", "__del__"}
    ],
)
@pytest.mark.parametrize("this", [None, 1, "text", object()])
def test_method_of_another_object_is_refused(function: Any, this: object) -> None:
    """C code that takes the object for one of its own would crash."""
    count = sum(
        parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        for parameter in inspect.signature(function).parameters.values()
    )
    with pytest.raises((AttributeError, TypeError)):
        function(this, *[b"abc"] * (count - 1))


def test_writer_without_a_sender_is_refused() -> None:
    """An object whose __init__ was not called has none."""
    batch = IOBatch()
    batch.addbuf(b"abc")
    with pytest.raises(AttributeError):
        BatchWriter.__new__(BatchWriter).write(batch)
    assert batch.bytesleft == 3


def test_batch_in_a_cycle_with_its_hook_is_collected() -> None:
    released = []

    class Batch(IOBatch):
        def release(self) -> None:
            released.append(self.bytesleft)

    batch = Batch()
    batch.addbuf(b"abc", on_release=batch.release)
    batch.addbuf(bytearray(b"def"))
    assert gc.is_tracked(batch)
    del batch
    gc.collect()
    assert len(released) == 1
