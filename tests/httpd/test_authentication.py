"""Credentials, and the thread that verifies passwords."""

from __future__ import annotations

from threading import Thread

import pytest

from iobatch.httpd import authentication
from iobatch.httpd.authentication import MAX_PENDING, Authentication, parse_basic
from iobatch.httpd.output import STDERR
from tests.support.passwords import Password, basic, users, verify
from tests.support.sockets import PATIENCE


@pytest.mark.parametrize(
    ("value", "credentials"),
    [
        (b"Basic dTpw", b"u:p"),
        (b"bASIC   dTpw", b"u:p"),
        (b"Basic OnA=", b":p"),
        (b"Basic dTo=", b"u:"),
        (b"Basic dTpwOnE=", b"u:p:q"),
        (b"", None),
        (b"Basic", None),
        (b"Basic ", None),
        (b"Basic dTpw ", None),
        (b"Basic\tdTpw", None),
        (b"Basic dXA=", None),  # no colon
        (b"Basic dTp", None),
        (b"Basic dT=pw", None),
        (b"Basic dTpw, Basic dTpw", None),
        (b"Bearer dTpw", None),
        (b'Digest username="u"', None),
        (b"Basic \xff", None),
    ],
)
def test_field_has_the_scheme_and_base64_with_a_colon(
    value: bytes, credentials: bytes | None
) -> None:
    assert parse_basic(value) == credentials
    if credentials is None:
        assert Authentication(users(Password(b""))).check(value) == 401


def test_right_password_is_hashed_once() -> None:
    password = Password(b"p:q \xc3\xa9")
    checker = Authentication(users(password))
    for _ in range(3):
        assert verify(checker, "u0:p:q \xe9") == 0
    assert password.compared == [b"p:q \xc3\xa9"]


def test_wrong_password_is_hashed_once() -> None:
    password = Password(b"right")
    checker = Authentication(users(password))
    for _ in range(3):
        assert verify(checker, "u0:wrong") == 401
        assert verify(checker, "u0:right") == 0
    assert password.compared == [b"wrong", b"right"]


def test_password_of_an_unknown_user_is_hashed_too_and_is_never_right() -> None:
    first, second = Password(b"1"), Password(b"2")
    checker = Authentication(users(first, second))
    assert [verify(checker, credentials) for credentials in ("x:1", "U0:1", ":1")] == [401] * 3
    assert first.compared == [b"1"] * 3
    assert [verify(checker, credentials) for credentials in ("u1:1", "u0:2")] == [401] * 2
    assert [verify(checker, credentials) for credentials in ("u0:1", "u1:2")] == [0, 0]
    assert [verify(checker, credentials) for credentials in ("x:1", "u1:1")] == [401] * 2


def test_requests_with_equal_credentials_share_one_hash(gated: Password) -> None:
    checker = Authentication(users(gated))
    value = basic("u0:secret").encode()
    assert [checker.check(value) for _ in range(100)] == [None] * 100
    gated.gate.set()
    checker._thread.join(PATIENCE)
    assert checker.check(value) == 0
    assert gated.compared == [b"secret"]


def test_thread_exists_only_while_there_is_work(gated: Password) -> None:
    """A process that has verified nothing can fork."""
    checker = Authentication(users(gated))
    assert not checker._thread.is_alive()
    for number in "12":
        gated.gate.clear()
        assert checker.check(basic(f"u0:{number}").encode()) is None
        assert checker._thread.is_alive()
        gated.gate.set()
        checker._thread.join(PATIENCE)
        assert not checker._thread.is_alive()


def test_request_beyond_those_that_wait_is_refused_and_verified_users_are_not(
    gated: Password,
) -> None:
    other = Password(b"other")
    checker = Authentication(users(gated, other))
    assert verify(checker, "u1:other") == 0
    values = [basic(f"u0:{i}").encode() for i in range(MAX_PENDING + 1)]
    assert [checker.check(value) for value in values] == [None] * MAX_PENDING + [503]
    assert checker.check(values[0]) is None
    assert verify(checker, "u1:other") == 0
    gated.gate.set()
    checker._thread.join(PATIENCE)
    assert [checker.check(value) for value in values] == [401] * MAX_PENDING + [None]


def test_results_are_taken_as_soon_as_they_are_there(gated: Password) -> None:
    other = Password(b"other")
    checker = Authentication(users(other, gated))
    first, second = basic("u0:other").encode(), basic("u1:secret").encode()
    assert checker.check(first) is None
    checker._thread.join(PATIENCE)
    assert checker.check(second) is None
    assert checker.check(first) == 0
    assert checker.check(second) is None
    gated.gate.set()
    checker._thread.join(PATIENCE)
    assert checker.check(second) == 0


def test_wrong_credentials_are_forgotten_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authentication, "MAX_REFUSED", 2)
    password = Password(b"")
    checker = Authentication(users(password))
    for number in "123231":
        assert verify(checker, f"u0:{number}") == 401
    assert password.compared == [b"1", b"2", b"3", b"1"]


def test_failure_of_the_thread_is_reported_and_the_next_request_tries_again(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The memory may be too small for a while."""
    password = Password(b"right")
    password.errors.append(MemoryError("no memory"))
    checker = Authentication(users(password))
    assert verify(checker, "u0:right") == 503
    STDERR.finish()
    assert capfd.readouterr().err.endswith("\nMemoryError: no memory\n\n")
    assert verify(checker, "u0:right") == 0


def test_request_that_finds_no_room_for_a_thread_is_refused_and_the_next_tries_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def start(self: Thread) -> None:
        raise RuntimeError("can't start new thread")

    checker = Authentication(users(Password(b"right")))
    with monkeypatch.context() as patch:
        patch.setattr(Thread, "start", start)
        assert verify(checker, "u0:right") == 503
    assert verify(checker, "u0:right") == 0
