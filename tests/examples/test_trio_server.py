"""trio_server.py: one file over HTTP, on trio."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest

from tests.support.examples import (
    check_curl_gets_a_file_thrice_over_one_connection,
    check_httpx_gets_a_file_while_another_client_does_not_read,
    line_count,
)

if TYPE_CHECKING:
    from pathlib import Path

PROGRAM = "trio_server.py"
needs_trio = pytest.mark.skipif(
    not find_spec("trio"), reason="trio is missing: install it (pip install trio)"
)


def test_trio_server_has_fewer_than_50_lines() -> None:
    assert line_count(PROGRAM) < 50


@needs_trio
def test_trio_server_answers_curl_thrice_over_one_connection(large_file: Path) -> None:
    check_curl_gets_a_file_thrice_over_one_connection(PROGRAM, large_file)


@needs_trio
def test_trio_server_answers_httpx_while_another_client_does_not_read(large_file: Path) -> None:
    check_httpx_gets_a_file_while_another_client_does_not_read(PROGRAM, large_file)
