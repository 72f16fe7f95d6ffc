"""Fixtures for the tests of the file server."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from iobatch.httpd import output
from tests.support.sockets import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def wait_for_outputs() -> Iterator[None]:
    """Let finish() wait until an output is written: its thread may have no turn for a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(output, "PATIENCE_AT_END", PATIENCE)
        yield
