"""The process that runs libowfat."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import pytest

from tests.original.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="package", autouse=True)
def _installed() -> None:
    try:
        ctypes.CDLL("libowfat.so")
    except OSError:
        pytest.skip("libowfat is missing: install it (Debian: apt-get install libowfat-dev)")


@pytest.fixture(scope="package")
def worker(_installed: None) -> Iterator[Worker]:
    with Worker() as process:
        yield process
