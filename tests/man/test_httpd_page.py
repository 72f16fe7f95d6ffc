"""iobatch-httpd(1): its options and numbers are those of the program."""

from __future__ import annotations

import re

import pytest

from iobatch.httpd import (
    authentication,
    codings,
    directories,
    fields,
    files,
    options,
    requestline,
    requests,
    scrypt,
    views,
    workers,
)
from iobatch.httpd.settings import Settings
from tests.support.httpd import run_httpd
from tests.support.manpages import path, section
from tests.support.programs import environment

PAGE = "iobatch-httpd.1"
SETTINGS = Settings()


def options_of_the_program() -> dict[str, str]:
    """Return the long options in --help with their arguments."""
    shown = run_httpd("--help", env=environment(COLUMNS="200")).stdout
    found = re.findall(r"^  (?:-\w.*, )?--(\S+)(| \S+| CERT KEY)(?:  .*)?$", shown, re.MULTILINE)
    return {name: arguments.strip().lower() for name, arguments in found if name != "help"}


def options_in(lines: list[str]) -> dict[str, str]:
    """Return the long options that source lines name with their arguments."""
    text = "\n".join(lines).replace("Op Ar file", "[file]").replace("Ar ", "")
    found = re.findall(r"Fl Fl (\S+)((?: (?!\|)[^\s|]+)*)", text)
    return {name: arguments.strip() for name, arguments in found}


def test_each_option_of_the_program_is_in_the_synopsis() -> None:
    lines = [line for line in section(PAGE, "SYNOPSIS") if line.startswith(".Op Fl")]
    assert options_in(lines) == options_of_the_program()


def test_each_option_of_the_program_is_described_once() -> None:
    lines = [line for line in path(PAGE).read_text().splitlines() if line.startswith(".It Fl")]
    assert options_in(lines) == options_of_the_program()
    assert len(lines) == len(options_of_the_program())


@pytest.mark.parametrize(
    "phrase",
    [
        f"by default {options.DEFAULT_ADDRESS}.",
        f"Listen on this port, by default {options.DEFAULT_PORT}.",
        f"in each worker, by default {SETTINGS.max_connections},",
        f"for at most this number of seconds, by default {SETTINGS.grace:g}.",
        f"is replaced after {'one' * (workers.RESPAWN_DELAY == 1)} second.",
        f"a target of more than {requestline.MAX_TARGET} bytes gets 414.",
        f"more than {fields.MAX_FIELDS} fields or {requests.MAX_HEAD >> 10} KiB gets 431.",
        f"complete within {SETTINGS.header_timeout:g} seconds of its first byte.",
        f"is closed after {SETTINGS.timeout:g} seconds in which",
        f"if it has at most {files.MAX_UNSIZED_CONTENT >> 20} MiB.",
        f"A listing has pages of {views.PAGE} entries.",
        f"at most {'one' * (directories.FRESH == 1)} second old, or, if that is longer,",
        f"if that is longer, {'four' * (directories.REUSE == 4)} times the time",
        f"Files of at least {codings.MIN_CODED >> 10} KiB, of text",
        f"at most {scrypt.MAX_MEMORY >> 20} MiB (128 times 2^ln times r times p).",
        f"If {authentication.MAX_PENDING} passwords wait for the thread,",
    ],
)
def test_number_in_the_page_is_that_of_the_program(phrase: str) -> None:
    assert phrase in path(PAGE).read_text().replace("\n", " ")
