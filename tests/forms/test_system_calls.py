"""The compiled form makes the system calls of plain batches itself."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import pytest

from iobatch import COMPILED, COPY_LIMIT, IOB_DONE, IOBatch, iob_send
from tests.support.batches import check_invariants, data
from tests.support.fakes import SYSTEM_CALLS
from tests.support.forms import forms, is_compiled, name_of_form
from tests.support.sockets import is_silent, receive, stream_pair

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from tests.support.batches import MakeFile

CONTENT = data(3 * COPY_LIMIT)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that collects the names of the system calls, which the kernel then answers."""
    names: list[str] = []

    def log(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            names.append(name)
            return function(*args)

        return call

    for name in ("send", "sendmsg"):
        monkeypatch.setattr(SYSTEM_CALLS, name, log(name, lambda *_args: NotImplemented))
    monkeypatch.setattr(SYSTEM_CALLS, "pread", log("pread", os.pread))
    monkeypatch.setattr(SYSTEM_CALLS, "sendfile", log("sendfile", os.sendfile))
    return names


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([100], ["send"]),
        ([100] * 3, ["send"]),
        ([20_000] * 3, ["sendmsg"]),
        ([100, "file of 1000"], ["pread", "send"]),
        ([100, "file of 1000"] * 2, ["pread", "pread", "send"]),
        ([20_000, "file of 20000", 100], ["pread", "sendmsg"]),
        (["file of 80000"], ["sendfile"]),
        ([100, "file of 80000"], ["send", "sendfile"]),
    ],
    ids=str,
)
@pytest.mark.parametrize("send", forms(iob_send), ids=name_of_form)
def test_compiled_form_makes_each_system_call_by_itself(
    send: Callable[..., int],
    sizes: list[int | str],
    expected: list[str],
    make_file: MakeFile,
    calls: list[str],
) -> None:
    """The pure form makes none of them through the table of the compiled form."""
    batch = IOBatch()
    wanted = b""
    fd = make_file(CONTENT)
    for size in sizes:
        if isinstance(size, str):
            count = int(size.rpartition(" ")[2])
            batch.addfile(fd, 5, count)
            wanted += CONTENT[5 : 5 + count]
        else:
            batch.addbuf(CONTENT[:size])
            wanted += CONTENT[:size]
    with stream_pair() as (sock, peer):
        assert send(sock, batch) == len(wanted)
        assert send(sock, batch) == IOB_DONE
        assert receive(peer, len(wanted)) == wanted
        assert is_silent(peer)
    check_invariants(batch)
    assert calls == (expected if is_compiled(send) else [])


def test_only_the_pure_form_runs_python_code_for_plain_entries(make_file: MakeFile) -> None:
    fd = make_file(CONTENT)
    batch = IOBatch()
    functions: list[str] = []

    def profile(frame: FrameType, event: str, _arg: object) -> None:
        if event == "call":
            functions.append(frame.f_code.co_name)

    with stream_pair() as (sock, _):
        sys.setprofile(profile)
        try:
            batch.addbuf(b"one")
            batch.addbufs([b"two", b"three"])
            batch.addfile(fd, 0, 1000)
            iob_send(sock, batch)
        finally:
            sys.setprofile(None)
    assert batch.bytessent == 1011
    plain = {"addbuf", "addbufs", "addfile", "iob_send", "consume"}
    assert plain & set(functions) == (set() if COMPILED else plain)
