"""The response sink: coded bodies after the head of their response."""

from __future__ import annotations

from iobatch.httpd.sink import HeadedChunks


def test_head_is_sent_with_the_first_chunk_and_only_once() -> None:
    chunks = HeadedChunks(b"head ")
    assert chunks.compress(b"") == b""
    assert chunks.compress(b"one") == b"head 3\r\none\r\n"
    assert chunks.compress(b"two") == b"3\r\ntwo\r\n"
    assert chunks.flush() == b"0\r\n\r\n"


def test_head_of_an_empty_body_is_sent_with_the_last_chunk() -> None:
    assert HeadedChunks(b"head ").flush() == b"head 0\r\n\r\n"
