"""The form of the pages: the order of their sections, and the words that man -k finds."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.support.manpages import MAN, PAGES
from tests.support.programs import tool
from tests.support.sockets import PATIENCE

if TYPE_CHECKING:
    from pathlib import Path

# Brackets: only some pages have the section.
SECTIONS = {
    "3": """NAME, SYNOPSIS, DESCRIPTION, RETURN VALUES, [ENVIRONMENT], EXAMPLES, ERRORS, SEE ALSO,
        [STANDARDS], [CAVEATS]""",
    "7": "NAME, DESCRIPTION, [ENVIRONMENT], EXAMPLES, SEE ALSO, [STANDARDS]",
}
# What a reader searches for, and the page that answers.
SEARCHES = {
    "asio": ("iobatch-asio", "7"),
    "async_write_some": ("iobatch-asio", "7"),
    "boost": ("iobatch-asio", "7"),
    "async_send": ("iobatch-asio", "7"),
    "buffer sequence": ("iobatch-asio", "7"),
    "completion token": ("iobatch-asio", "7"),
    "use_awaitable": ("iobatch-asio", "7"),
    "yield_context": ("iobatch-asio", "7"),
    "cancel_after": ("iobatch-asio", "7"),
    "operation_aborted": ("iobatch-asio", "7"),
    "shutdown": ("iobatch-asio", "7"),
    "strand": ("iobatch-asio", "7"),
    "use_future": ("iobatch-asio", "7"),
    "bufferevent": ("iobatch-libevent", "7"),
    "bufferevent_filter_new": ("iobatch-libevent", "7"),
    "evbuffer": ("iobatch-libevent", "7"),
    "watermark": ("iobatch-libevent", "7"),
    "libevent": ("iobatch-libevent", "7"),
    "libowfat": ("iobatch-libowfat", "7"),
    "io_canwrite": ("iobatch-libowfat", "7"),
    "io_eagain": ("iobatch-libowfat", "7"),
    "io_passfd": ("iobatch-libowfat", "7"),
    "io_sendfile": ("iobatch-libowfat", "7"),
    "io_setcookie": ("iobatch-libowfat", "7"),
    "io_timeout": ("iobatch-libowfat", "7"),
    "lispworks": ("iobatch-lispworks", "7"),
    "abort": ("iobatch-lispworks", "7"),
    "attach-ssl": ("iobatch-lispworks", "7"),
    "async-io-state-read-buffer": ("iobatch-lispworks", "7"),
    "async-io-state-write-buffer": ("iobatch-lispworks", "7"),
    "user-info": ("iobatch-lispworks", "7"),
    "wait-state-collection": ("iobatch-lispworks", "7"),
    "overlapped": ("iobatch-winsock", "7"),
    "acceptex": ("iobatch-winsock", "7"),
    "cancelioex": ("iobatch-winsock", "7"),
    "getqueuedcompletionstatus": ("iobatch-winsock", "7"),
    "postqueuedcompletionstatus": ("iobatch-winsock", "7"),
    "completion port": ("iobatch-winsock", "7"),
    "completion routine": ("iobatch-winsock", "7"),
    "iocp": ("iobatch-winsock", "7"),
    "windows": ("iobatch-winsock", "7"),
    "msg_partial": ("iobatch-winsock", "7"),
    "sio_flush": ("iobatch-winsock", "7"),
    "wsagetoverlappedresult": ("iobatch-winsock", "7"),
    "wsarecv": ("iobatch-winsock", "7"),
    "fork": ("iobatch", "7"),
    "signals": ("iobatch", "7"),
    "threads": ("iobatch", "7"),
    "wsasend": ("iobatch-winsock", "7"),
    "asyncio": ("iobatch-asyncio", "7"),
    "backpressure": ("iobatch-asyncio", "7"),
    "loop.sendfile": ("iobatch-asyncio", "7"),
    "set_write_buffer_limits": ("iobatch-asyncio", "7"),
    "sock_sendall": ("iobatch-asyncio", "7"),
    "start_server": ("iobatch-asyncio", "7"),
    "start_tls": ("iobatch-asyncio", "7"),
    "wait_for": ("iobatch-asyncio", "7"),
    "write_eof": ("iobatch-asyncio", "7"),
    "writelines": ("iobatch-asyncio", "7"),
    "drain": ("BatchWriter", "3"),
    "uvloop": ("BatchWriter", "3"),
    "cancel": ("WriteOperation", "3"),
    "timeout": ("iob_sendall", "3"),
    "epoll": ("iob_send", "3"),
    "selectors": ("iob_send", "3"),
    "sendfile": ("iob_send", "3"),
    "writev": ("iob_send", "3"),
    "zero-copy": ("iob_send", "3"),
    "descriptor passing": ("iob_sendmsg", "3"),
    "scm_rights": ("iob_sendmsg", "3"),
    "sendmsg": ("iob_sendmsg", "3"),
    "iob_addbuf": ("IOBatch", "3"),
    "iob_addfile_close": ("IOBatch", "3"),
    "chunked": ("Chunked", "3"),
    "gzip": ("Filter", "3"),
    "tls": ("TLS", "3"),
    "anyio": ("send_batch", "3"),
    "trio": ("send_batch", "3"),
}


@pytest.fixture(scope="module")
def searchable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a copy of the pages that man -k can search."""
    makewhatis = tool("makewhatis", "mandoc")
    copy = tmp_path_factory.mktemp("searchable") / "man"
    shutil.copytree(MAN, copy, symlinks=True)
    subprocess.run([makewhatis, copy], capture_output=True, timeout=PATIENCE, check=True)
    return copy


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.suffix != ".1"], ids=lambda page: page.name
)
def test_sections_of_a_page_are_in_the_order_of_all_pages(page: Path) -> None:
    found = re.findall(r"^\.Sh (.*)", page.read_text(), re.MULTILINE)
    allowed = re.split(r",\s+", SECTIONS[page.suffix[1:]])
    assert found == [each.strip("[]") for each in allowed if each in found or each[1:-1] in found]
    assert [each for each in allowed if each[0] != "[" and each not in found] == []


@pytest.mark.parametrize("words", SEARCHES)
def test_man_k_finds_the_page_for(words: str, searchable: Path) -> None:
    search = subprocess.run(
        [tool("mman", "mandoc"), "-M", searchable, "-k", words],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    # A line has all names of a page, as in "Filter, Transform(3) - ...".
    answers = re.findall(r"^(.*)\((\d)\) - ", search.stdout, re.MULTILINE)
    found = {(name, number) for names, number in answers for name in names.split(", ")}
    assert SEARCHES[words] in found
