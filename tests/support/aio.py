"""Posted writes in tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from iobatch.aio import WriteOperation, WriteStatus


def statuses(operations: list[WriteOperation]) -> list[WriteStatus]:
    return [operation.status for operation in operations]
