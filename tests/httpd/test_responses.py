"""Heads of responses: their dates and their end."""

from __future__ import annotations

import os
from email.utils import formatdate

import pytest

from iobatch.httpd import responses
from iobatch.httpd.files import ServedFile
from tests.support.httpd import MODIFIED


def test_end_of_a_head_is_made_once_a_second_and_names_keep_alive_to_http_1_0() -> None:
    assert responses.head_end(MODIFIED, "1.1", True) is responses.head_end(MODIFIED, "1.1", True)
    date = b"Date: Tue, 14 Nov 2023 22:13:20 GMT\r\n"
    assert responses.head_end(MODIFIED, "1.1", True) == date + b"\r\n"
    assert responses.head_end(MODIFIED, "1.0", True) == date + b"Connection: keep-alive\r\n\r\n"
    assert responses.head_end(MODIFIED, "1.0", False) == date + b"Connection: close\r\n\r\n"


@pytest.mark.parametrize(
    ("modified", "expected"), [(5.7, 5), (-(2.0**40), 0), (2.0**40, MODIFIED), (MODIFIED, MODIFIED)]
)
def test_last_modified_is_never_in_the_future_or_before_1970(
    modified: float, expected: int
) -> None:
    file = ServedFile(os.open(os.devnull, os.O_RDONLY), 7, modified, "text/css", "tag")
    head = responses.file_head(file, "", MODIFIED).decode()
    assert f"Last-Modified: {formatdate(expected, usegmt=True)}\r\n" in head
