"""Users and the hashes of their passwords: the options, the file, and the command for its lines."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from argparse import ArgumentTypeError
from typing import TYPE_CHECKING

import pytest

from iobatch.httpd import scrypt
from iobatch.httpd.scrypt import ScryptHash, new_hash, parse_hash
from iobatch.httpd.users import parse_user, read_users
from tests.support.httpd import address_of, get, program, run_httpd
from tests.support.programs import environment
from tests.support.sockets import PATIENCE

if TYPE_CHECKING:
    from pathlib import Path

# From passlib's documentation.
PASSLIB = "$scrypt$ln=16,r=8,p=1$aM15713r3Xsvxbi31lqr1Q$nFNh2CVHVjNldFVKDHDlm4CbdRSCdEBsjjJxD+iCs5E"
# From RFC 7914 12.
RFC = ScryptHash(
    14,
    8,
    1,
    b"SodiumChloride",
    bytes.fromhex(
        "7023bdcb3afd7348461c06cd81fd38ebfda8fbba904f8e3ea9b543f6545da1f2"
        "d5432955613f0fcf62d49705242a9af9e61e85dc0d651e40dfcf017b45575887"
    ),
)
# 16 bytes.
VALUE = "AAAAAAAAAAAAAAAAAAAAAA"
FORM = "the hash is not of the form $scrypt$ln=14,r=8,p=1$SALT$HASH"
COMMAND = (sys.executable, "-m", "iobatch.httpd.password")


def hash_with(parameters: str, salt: str = "AA", value: str = VALUE) -> str:
    return f"$scrypt${parameters}${salt}${value}"


def test_hashes_of_others_match_their_passwords_only() -> None:
    for known, password in ((parse_hash(PASSLIB), b"password"), (RFC, b"pleaseletmein")):
        assert known.matches(password)
        assert not known.matches(password + b" ")


def test_text_of_a_hash_stands_for_it() -> None:
    assert str(parse_hash(PASSLIB)) == PASSLIB
    assert parse_hash(str(RFC)) == RFC


def test_new_hash_has_a_new_salt_of_16_bytes() -> None:
    first, second = new_hash(b"p"), new_hash(b"p")
    assert len(first.salt) == len(second.salt) == 16
    assert first.salt != second.salt
    assert first.value == hashlib.scrypt(b"p", salt=first.salt, n=2**14, r=8, p=1, dklen=32)
    assert first.matches(b"p")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", FORM),
        ("secret", FORM),
        ("$2b$12$abcdefghijklmnopqrstuv", FORM),
        (PASSLIB + "=", FORM),
        (PASSLIB + " x", FORM),
        (hash_with("ln=0,r=8,p=1"), FORM),
        (hash_with("ln=14,r=0,p=1"), FORM),
        (hash_with("ln=14,r=8,p=0"), FORM),
        (hash_with("ln=14,r=8"), FORM),
        (hash_with("ln=\u0661,r=8,p=1"), FORM),
        (hash_with("ln=999,r=8,p=1"), FORM),
        (hash_with("ln=14,r=8,p=1", "A"), "the salt or the hash is not base64"),
        (hash_with("ln=14,r=8,p=1", value="A" * 21), "the salt or the hash is not base64"),
        (hash_with("ln=14,r=8,p=1", value="A" * 20), "the hash has fewer than 16 bytes"),
        (hash_with("ln=16,r=1,p=1"), "ln must be less than 16 times r"),
        (hash_with("ln=19,r=8,p=1"), "the hash needs more than 256 MiB of memory"),
        (hash_with("ln=18,r=9,p=1"), "the hash needs more than 256 MiB of memory"),
        (hash_with("ln=17,r=8,p=3"), "the hash needs more than 256 MiB of memory"),
        (hash_with("ln=99,r=9999999,p=9999999"), "the hash needs more than 256 MiB of memory"),
    ],
)
def test_hash_of_another_form_or_size_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_hash(text)
    assert str(caught.value) == reason


@pytest.mark.parametrize("parameters", ["ln=10,r=8,p=1", "ln=1,r=4096,p=1", "ln=1,r=1,p=4096"])
def test_hash_of_the_most_memory_can_be_computed(
    monkeypatch: pytest.MonkeyPatch, parameters: str
) -> None:
    """OpenSSL has a limit in proportion, which counts more."""
    monkeypatch.setattr(scrypt, "MAX_MEMORY", 1 << 20)
    largest = parse_hash(hash_with(parameters))
    assert (128 * largest.r * largest.p) << largest.log_n == 1 << 20
    assert not largest.matches(b"")


@pytest.mark.parametrize(
    "argument",
    ["", "u", "u:", ":p", "u\n:p", "u:p\x7f", "\udcff:p", "u:\udcff", "u\x85:p"],
)
def test_argument_that_is_no_user_and_password_is_refused(argument: str) -> None:
    with pytest.raises(ArgumentTypeError) as caught:
        parse_user(argument)
    assert str(caught.value) == "must be USER:PASSWORD in UTF-8, without control characters"


def test_argument_is_split_at_the_first_colon() -> None:
    [(user, known)] = parse_user("\xfc #:p: ").items()
    assert user == "\xfc #".encode()
    assert known.matches(b"p: ")


def test_file_has_a_user_on_each_line_that_is_neither_empty_nor_a_comment(tmp_path: Path) -> None:
    other = hash_with("ln=4,r=1,p=2")
    text = f"\ufeff# users\n\n \nb b:{other}\r\n#x:{other}\n\xfc#:{PASSLIB}  "
    (tmp_path / "users").write_bytes(text.encode())
    users = read_users(str(tmp_path / "users"))
    assert users == {b"b b": parse_hash(other), "\xfc#".encode(): parse_hash(PASSLIB)}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (f"a:{PASSLIB}\n\nb\n", "line 3: the line is not of the form USER:HASH, in UTF-8"),
        (f":{PASSLIB}", "line 1: the line is not of the form USER:HASH, in UTF-8"),
        (f"a\x07:{PASSLIB}", "line 1: the line is not of the form USER:HASH, in UTF-8"),
        (f"#\nb:p\na:{PASSLIB}", f"line 2: {FORM}"),
        (f"a:{PASSLIB}\nb:{PASSLIB}\na:{PASSLIB}", "line 3: the user a has a line already"),
        (
            f"a:{PASSLIB}\n\udcff:{PASSLIB}",
            "line 2: the line is not of the form USER:HASH, in UTF-8",
        ),
        ("# nobody\n", "there is no line USER:HASH"),
        ("", "there is no line USER:HASH"),
    ],
)
def test_bad_line_of_the_file_is_reported_with_its_number(
    tmp_path: Path, content: str, reason: str
) -> None:
    path = tmp_path / "users"
    path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ArgumentTypeError) as caught:
        read_users(str(path))
    assert str(caught.value) == f"{path}: {reason}"


def test_program_reports_a_file_that_it_cannot_use(site: Path, tmp_path: Path) -> None:
    (tmp_path / "users").write_text("x\n")
    for name, reason in (
        ("users", "line 1: the line is not of the form USER:HASH, in UTF-8"),
        ("nothing", "No such file or directory"),
    ):
        result = run_httpd(site, "--auth-file", tmp_path / name)
        assert result.returncode == 2
        assert result.stderr.endswith(f"error: argument --auth-file: {tmp_path / name}: {reason}\n")


def test_options_for_passwords_exclude_each_other(site: Path, tmp_path: Path) -> None:
    (tmp_path / "users").write_text(f"a:{PASSLIB}")
    result = run_httpd(site, "--auth", "u:p", "--auth-file", tmp_path / "users")
    assert result.returncode == 2
    assert "not allowed with argument --auth\n" in result.stderr


def make_line(user: str, password: bytes) -> subprocess.CompletedProcess[bytes]:
    """Run the command with a standard input that is no terminal."""
    return subprocess.run(
        [*COMMAND, user],
        input=password,
        capture_output=True,
        timeout=PATIENCE,
        check=False,
        env=environment(),
    )


def test_server_accepts_the_password_of_a_line_that_the_command_makes(
    site: Path, tmp_path: Path
) -> None:
    path = tmp_path / "users"
    for user, password in (("a", b"1:\xc3\xa9\n"), ("b", b" 2 \r\nmore"), ("c", b"3")):
        result = make_line(user, password)
        assert (result.returncode, result.stderr) == (0, b"")
        assert result.stdout.startswith(user.encode() + b":$scrypt$ln=14,r=8,p=1$")
        path.write_bytes((path.read_bytes() if path.exists() else b"") + result.stdout)
    with program(site, "--auth-file", str(path)) as (_, url):
        for credentials, status in (
            ("YToxOsOp", 200),  # a:1:\xe9
            ("YjogMiA=", 200),  # b: 2 (a space before and after)
            ("Yzoz", 200),  # c:3
            ("Yzox", 401),  # c:1
        ):
            response = get(address_of(url), "/1", Authorization=f"Basic {credentials}")
            assert response.status == status


@pytest.mark.parametrize(
    ("user", "password", "reason"),
    [
        ("", b"p", b"the user must"),
        ("#a", b"p", b"the user must"),
        ("a:b", b"p", b"the user must"),
        ("a\n", b"p", b"the user must"),
        ("a", b"", b"the password must"),
        ("a", b"\n", b"the password must"),
        ("a", b"p\tq\n", b"the password must"),
        ("a", b"\xff", b"the password must"),
        ("\udcff", b"p", b"the user must"),
    ],
)
def test_command_refuses_what_no_file_or_client_can_have(
    user: str, password: bytes, reason: bytes
) -> None:
    result = make_line(user, password)
    assert (result.returncode, result.stdout) == (2, b"")
    assert b"error: " + reason in result.stderr


@pytest.mark.parametrize(
    ("redirection", "reason"),
    [
        ("<&-", "Bad file descriptor"),
        (">&-", "Bad file descriptor"),
        (">/dev/full", "No space left on device"),
    ],
)
def test_command_that_cannot_read_or_write_says_so_in_one_line(
    redirection: str, reason: str
) -> None:
    result = subprocess.run(
        ["/bin/sh", "-c", f'exec "$@" {redirection}', "sh", *COMMAND, "u"],
        input="p\n",
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        env=environment(),
    )
    assert result.returncode == 1
    assert result.stderr == f"iobatch.httpd.password: {reason}\n"


@pytest.mark.parametrize(
    ("typed", "output", "message"),
    [
        ((b"p q\n", b"p q\n"), b"u:$scrypt$ln=14,", b""),
        ((b"p\n", b"q\n"), b"", b"the passwords differ"),
        ((b"\x04",), b"", b"no password"),
        ((b"p\n", b"\x03"), b"", b"no password"),
    ],
)
def test_command_asks_twice_on_a_terminal_without_echo(
    typed: tuple[bytes, ...], output: bytes, message: bytes
) -> None:
    """What is typed is Ctrl-D or Ctrl-C in two cases."""
    reading, writing = os.openpty()
    code = (
        "import fcntl, runpy, signal, sys, termios\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell may ignore it
        "fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
        "runpy.run_module('iobatch.httpd.password', run_name='__main__', alter_sys=True)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, "u"],
        stdin=writing,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env=environment(),
    ) as process:
        shown = b""
        for prompt, line in zip((b"Password: ", b"Again: "), typed, strict=False):
            while not shown.endswith(prompt):
                shown += os.read(reading, 1)
            os.write(reading, line)
        stdout, stderr = process.communicate(timeout=PATIENCE)
    os.close(writing)
    os.close(reading)
    assert stdout.startswith(output)
    assert bool(stdout) == bool(output)
    assert message in stderr
    assert b"Traceback" not in stderr
    assert process.returncode == (1 if message else 0)
    assert b"p" not in shown.replace(b"Password: ", b"")
