"""Basic authentication (RFC 7617): a thread verifies the passwords of requests."""

from __future__ import annotations

import re
import traceback
from base64 import b64decode
from collections import deque
from hashlib import blake2b
from hmac import compare_digest
from secrets import token_bytes
from threading import Thread
from typing import TYPE_CHECKING

from attrs import define, field

from iobatch.httpd.output import report

if TYPE_CHECKING:
    from collections.abc import Mapping

    from iobatch.httpd.scrypt import ScryptHash

# The most credentials that wait for the thread, which verifies about 25 a second.
MAX_PENDING = 64
# The refused credentials that are remembered. So a client that repeats wrong ones costs little, and
# all results that the thread finds between two turns are there when the requests go on.
MAX_REFUSED = 1024

# RFC 9110 11.4 and RFC 7617 2.
_BASIC = re.compile(rb"(?i:Basic) +([A-Za-z0-9+/]+=*)")
_DIGEST_SIZE = 32
_NO_DIGEST = bytes(_DIGEST_SIZE)


@define(eq=False)
class _Verification:
    """The work of the thread on credentials."""

    user: bytes
    password: bytes
    # The user's, or another one if the user is unknown.
    hash: ScryptHash
    known: bool
    # The status that refuses the credentials, or 0; None: the thread has not finished.
    status: int | None = field(init=False, default=None)
    # Why the thread failed.
    error: str = field(init=False, default="")

    def run(self) -> None:
        """Find the status."""
        try:
            # Also for an unknown user: so the time does not show that there is none.
            matches = self.hash.matches(self.password)
            self.status = 0 if matches and self.known else 401
        except Exception:  # noqa: BLE001  # the memory may be too small
            self.error = traceback.format_exc()
            self.status = 503


@define(eq=False)
class Authentication:
    """Verifies the credentials of requests.

    A password is hashed in a thread, because that takes as long as thousands of requests. Requests
    with the same credentials share the result. It is remembered under a digest with a random key,
    so the time of a comparison shows nothing about the credentials.

    The thread runs while there is work, so a process that has verified nothing can fork.
    """

    # By the name in UTF-8. There is at least one.
    _users: Mapping[bytes, ScryptHash]
    _key: bytes = field(init=False, factory=lambda: token_bytes(_DIGEST_SIZE))
    # The digests of credentials that were verified, by the user.
    _verified: dict[bytes, bytes] = field(init=False, factory=dict[bytes, bytes])
    # The statuses that refuse credentials, by their digest, the oldest first.
    _refused: dict[bytes, int] = field(init=False, factory=dict[bytes, int])
    # By the digest, in the order of the work.
    _pending: dict[bytes, _Verification] = field(init=False, factory=dict[bytes, _Verification])
    # What the thread has not begun.
    _queue: deque[_Verification] = field(init=False, factory=deque[_Verification])
    _thread: Thread = field(init=False, factory=Thread)

    def check(self, authorization: bytes) -> int | None:
        """Return the status that refuses a request, or 0; None: call again later.

        Args:
            authorization: the value of the request's field.

        """
        credentials = parse_basic(authorization)
        if credentials is None:
            return 401
        if self._pending:
            self._collect()
        user, _, password = credentials.partition(b":")
        digest = blake2b(credentials, key=self._key, digest_size=_DIGEST_SIZE).digest()
        if compare_digest(digest, self._verified.get(user, _NO_DIGEST)):
            return 0
        status = self._refused.get(digest)
        if status == 503:  # the thread has failed; the next request tries again
            del self._refused[digest]
        if status:
            return status
        if digest not in self._pending:
            if len(self._pending) >= MAX_PENDING:
                return 503
            known = self._users.get(user)
            hashed = known or next(iter(self._users.values()))
            work = _Verification(user, password, hashed, known is not None)
            self._pending[digest] = work
            self._queue.append(work)
        return None if self._resume() else 503

    def _collect(self) -> None:
        """Remember what the thread has found."""
        for digest, work in list(self._pending.items()):
            if work.status is None:
                break
            del self._pending[digest]
            if work.error:
                report(work.error)
            if not work.status:
                self._verified[work.user] = digest
            else:
                if len(self._refused) >= MAX_REFUSED:
                    del self._refused[next(iter(self._refused))]
                self._refused[digest] = work.status

    def _resume(self) -> bool:
        """Run the thread while there is work; return False if the system has no room for it."""
        if not self._thread.is_alive():
            self._thread = Thread(target=self._run, daemon=True)
            try:
                self._thread.start()
            except RuntimeError:
                return False
        return True

    def _run(self) -> None:
        while self._queue:
            self._queue.popleft().run()


def parse_basic(authorization: bytes) -> bytes | None:
    """Return the user and password, with a colon between them; None: the field has another form.

    Args:
        authorization: the field's value.

    """
    match = _BASIC.fullmatch(authorization)
    if match is None:
        return None
    try:
        credentials = b64decode(match[1], validate=True)
    except ValueError:
        return None
    return credentials if b":" in credentials else None
