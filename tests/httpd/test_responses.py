"""Heads of responses: their dates and their end."""

from __future__ import annotations

from iobatch.httpd import responses
from tests.support.httpd import MODIFIED


def test_end_of_a_head_is_made_once_a_second_and_names_keep_alive_to_http_1_0() -> None:
    assert responses.head_end(MODIFIED, "1.1", True) is responses.head_end(MODIFIED, "1.1", True)
    date = b"Date: Tue, 14 Nov 2023 22:13:20 GMT\r\n"
    assert responses.head_end(MODIFIED, "1.1", True) == date + b"\r\n"
    assert responses.head_end(MODIFIED, "1.0", True) == date + b"Connection: keep-alive\r\n\r\n"
    assert responses.head_end(MODIFIED, "1.0", False) == date + b"Connection: close\r\n\r\n"
