"""A notification of the service manager: it arrives whole or not at all, and nothing is raised."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from iobatch.httpd.systemd import notify
from tests.faults.harness import EVERY, Interrupted, scenario
from tests.faults.shim import Fault

if TYPE_CHECKING:
    from tests.faults.harness import Run


@scenario(
    silent=EVERY,
    # The kernel sends a datagram whole or not at all.
    spared=(("sendto", "short"), ("sendto", "signal+short")),
)
def notify_service_manager(run: Run) -> None:
    fault = run.fault
    address = run.folder / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(address))
        manager.setblocking(False)
        received = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("NOTIFY_SOCKET", str(address))
            try:
                with run.counting():
                    notify("READY=1")
            except Interrupted:
                assert run.is_fault(Interrupted())
        with suppress(BlockingIOError):
            while True:
                received.append(manager.recv(100))
    address.unlink()
    is_sent = fault is None or fault.call == "close"
    is_sent |= fault in {Fault("sendto", 1, "EINTR"), Fault("sendto", 1, "signal")}
    assert received == [b"READY=1"] * is_sent
