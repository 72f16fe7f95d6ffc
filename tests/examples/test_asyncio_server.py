"""asyncio_server.py: one file over HTTP, on asyncio."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.support.examples import (
    check_curl_gets_a_file_thrice_over_one_connection,
    check_httpx_gets_a_file_while_another_client_does_not_read,
    line_count,
)

if TYPE_CHECKING:
    from pathlib import Path

PROGRAM = "asyncio_server.py"


def test_asyncio_server_has_fewer_than_60_lines() -> None:
    assert line_count(PROGRAM) < 60


def test_asyncio_server_answers_curl_thrice_over_one_connection(large_file: Path) -> None:
    check_curl_gets_a_file_thrice_over_one_connection(PROGRAM, large_file)


def test_asyncio_server_answers_httpx_while_another_client_does_not_read(large_file: Path) -> None:
    check_httpx_gets_a_file_while_another_client_does_not_read(PROGRAM, large_file)
