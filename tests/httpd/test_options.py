"""The command line's options."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from iobatch.httpd.options import parse_args
from tests.support.httpd import address_of, get, program, run_httpd
from tests.support.programs import environment


@pytest.mark.parametrize("arguments", [("",), (".", "--unix", "")], ids=["directory", "--unix"])
def test_empty_path_is_refused(arguments: tuple[str, ...]) -> None:
    result = run_httpd(*arguments)
    assert result.returncode == 2
    assert result.stderr.endswith(": must not be empty\n")


def test_number_in_place_of_the_directory_gets_advice_unless_it_is_one(tmp_path: Path) -> None:
    result = run_httpd("8000", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.endswith("argument DIRECTORY: there is no 8000; for the port use -p\n")
    (tmp_path / "8000").mkdir()
    (tmp_path / "8000" / "file").write_bytes(b"x")
    with program(Path("8000"), cwd=tmp_path) as (_, url):
        assert get(address_of(url), "/file").body == b"x"


@pytest.mark.parametrize(
    ("option", "value", "bounds"),
    [
        ("-p/--port", "65536", "from 0 to 65535"),
        ("-p/--port", "-1", "from 0 to 65535"),
        ("--workers", "0", "from 1 to 1024"),
        ("--grace", "soon", "from 0 to 1000000"),
        *(
            (
                "--limit-rate",
                value,
                "from 1 to 1000000000000, which may end with k, M, G, Ki, Mi or Gi",
            )
            for value in ("0k", "1001G", "1.5M", "k", "2m", "2kB", "-1", "\u0662k")
        ),
    ],
)
def test_number_outside_its_bounds_is_refused(option: str, value: str, bounds: str) -> None:
    result = run_httpd(".", option.rpartition("/")[2], value)
    assert result.returncode == 2
    assert result.stderr.endswith(f"error: argument {option}: must be a number {bounds}\n")


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("10", 10),
        ("10k", 10_000),
        ("2M", 2_000_000),
        ("1G", 10**9),
        ("1Ki", 1024),
        ("3Mi", 3 << 20),
        ("2Gi", 2 << 30),
    ],
)
def test_size_has_a_decimal_or_binary_unit(
    monkeypatch: pytest.MonkeyPatch, text: str, nbytes: int
) -> None:
    monkeypatch.setattr(sys, "argv", ["httpd", "--limit-rate", text])
    assert parse_args().limit_rate == nbytes


def test_directory_and_address_have_defaults_and_short_options(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", ["httpd"])
    args = parse_args()
    assert (args.directory, args.bind, args.port) == (".", "127.0.0.1", 8000)
    monkeypatch.setattr(sys, "argv", ["httpd", "-b", "::", "-p", "0"])
    args = parse_args()
    assert (args.bind, args.port) == ("::", 0)


def test_log_file_without_a_log_is_refused() -> None:
    result = run_httpd("--log", "none", "--log-file", "log")
    assert result.returncode == 2
    assert result.stderr.endswith("error: argument --log: none is not allowed with --log-file\n")


@pytest.mark.parametrize("value", ["", "proxy", "10.0.0.1/8", "fe80::1%eth0/64"])
def test_proxy_that_is_no_address_or_network_is_refused(value: str) -> None:
    result = run_httpd("--trusted-proxy", value)
    assert result.returncode == 2
    assert result.stderr.endswith(
        f"--trusted-proxy: must be an address, a network or unix: {value}\n"
    )


def test_help_fits_into_80_columns_and_ends_with_examples() -> None:
    result = run_httpd("--help", env=environment(COLUMNS="80"))
    assert result.returncode == 0
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) < 80
    for word in ("DIRECTORY", "--bind ADDR", "--port N"):
        assert word in result.stdout
    examples = lines[lines.index("examples:") :]
    assert sum(line.startswith("    python -m iobatch.httpd -") for line in examples) == 2


def test_help_of_an_option_has_at_most_two_lines() -> None:
    result = run_httpd("--help", env=environment(COLUMNS="80"))
    options, _, _ = result.stdout.partition("examples:")
    entries = re.findall(r"^  -.*(?:\n {3,}.*)*", options, re.MULTILINE)
    assert len(entries) > 10
    for entry in entries:
        assert sum(line[22:24].isspace() for line in entry.splitlines()) <= 2, entry
