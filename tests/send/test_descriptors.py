"""Descriptors other than sockets: pipes, terminals, files, devices."""

from __future__ import annotations

import errno
import os
import tty
from typing import TYPE_CHECKING

import pytest

from iobatch import IOB_DONE, IOB_ERROR, IOBatch
from tests.support.batches import batch_of
from tests.support.drivers import pump
from tests.support.send import make_response

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.batches import MakeFile

    Send = Callable[..., int]


@pytest.mark.parametrize("kind", ["pipe", "pty"])
def test_pipe_and_terminal_get_the_whole_batch(send: Send, make_file: MakeFile, kind: str) -> None:
    source, target = os.pipe() if kind == "pipe" else os.openpty()
    try:
        if kind == "pty":
            tty.setraw(target)
        os.set_blocking(target, False)
        batch, wanted = make_response(make_file)
        batch.addbuf(bytearray(b"more"))
        assert pump(send, target, source, batch) == wanted + b"more"
    finally:
        os.close(source)
        os.close(target)


@pytest.mark.parametrize("by", ["descriptor", "object"])
def test_regular_file_gets_the_whole_batch(
    send: Send, tmp_path: Path, make_file: MakeFile, by: str
) -> None:
    batch, wanted = make_response(make_file)
    path = tmp_path / "copy"
    with path.open("wb", buffering=0) as file:
        while (nbytes := send(file.fileno() if by == "descriptor" else file, batch)) > 0:
            pass
    assert nbytes == IOB_DONE
    assert path.read_bytes() == wanted


def test_full_device_is_enospc(send: Send) -> None:
    batch = IOBatch()
    batch.addbuf(b"hello")
    fd = os.open("/dev/full", os.O_WRONLY)
    try:
        assert send(fd, batch) == IOB_ERROR
    finally:
        os.close(fd)
    assert isinstance(batch.error, OSError)
    assert batch.error.errno == errno.ENOSPC


def test_largest_descriptor_that_is_not_open_is_ebadf(send: Send) -> None:
    batch = batch_of(b"hello")
    assert send(2**31 - 1, batch) == IOB_ERROR
    assert isinstance(batch.error, OSError)
    assert batch.error.errno == errno.EBADF
