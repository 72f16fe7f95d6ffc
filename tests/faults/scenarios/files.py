"""Adding files: open, fstat and what else addfile() needs; a call that fails changes nothing."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from iobatch._files import file_version, version_of
from tests.faults.delivery import Delivery
from tests.faults.harness import Interrupted, scenario
from tests.support.batches import data, take

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.faults.harness import Run


def check_adding(run: Run, delivery: Delivery, add: Callable[[], object], content: bytes) -> None:
    """Add a file with this content, and check that the batch has either all of it or none."""
    delivery.buffer(100)
    batch = delivery.batch
    failed = False
    try:
        with run.counting():
            add()
    except Interrupted:
        assert run.is_fault(Interrupted())
        failed = batch.bytesleft == 100  # else it came after the file was added
    except (OSError, ValueError) as exc:
        if not is_reason(run, exc):
            raise
        failed = True
    if not failed:
        delivery.content += content
    assert batch.bytesleft == len(delivery.content)
    delivery.received += take(batch)
    delivery.check()


def is_reason(run: Run, exc: Exception) -> bool:
    """Return whether the exception of an add is one that is documented for the fault."""
    fault = run.fault
    if fault is None:
        return False
    if isinstance(exc, ValueError):  # the file has no offsets, or its size can't be confirmed
        return fault.call in {"lseek", "poll"} or (fault.call, fault.kind) == ("pread", "EAGAIN")
    if (fault.call, fault.kind) == ("open", "EAGAIN"):  # a lease on the file
        return isinstance(exc, OSError) and exc.errno == errno.EBUSY
    return run.is_fault(exc)


@scenario()
def add_path(run: Run) -> None:
    """Add a path, which is opened, and closed when it is sent."""
    delivery = Delivery(run, exact=False)
    path = delivery.path(5000)
    check_adding(
        run, delivery, lambda: delivery.batch.addfile(path, 10), data(5000, seed=5000)[10:]
    )


@scenario()
def add_empty_path(run: Run) -> None:
    """Add an empty file: a look at its content confirms that, and it is closed at once."""
    delivery = Delivery(run, exact=False)
    path = delivery.path(0)
    check_adding(run, delivery, lambda: delivery.batch.addfile(path), b"")


@scenario()
def add_owned_descriptor(run: Run) -> None:
    """Add a descriptor that the batch owns, and closes whatever fails."""
    delivery = Delivery(run, exact=False)
    fd = os.open(delivery.path(5000), os.O_RDONLY)
    check_adding(run, delivery, lambda: delivery.batch.addfile_close(fd), data(5000, seed=5000))


@scenario()
def look_at_file(run: Run) -> None:
    """Call file_version(), which raises the error of fstat."""
    path = run.folder / "version"
    path.touch()
    fd = os.open(path, os.O_RDONLY)
    expected = version_of(os.fstat(fd))
    try:
        with run.counting():
            version = file_version(fd)
    except OSError as exc:
        if not run.is_fault(exc):
            raise
    else:
        assert version == expected
    os.close(fd)
