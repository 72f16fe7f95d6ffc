"""Password hashes by scrypt (RFC 7914), in the PHC string format."""

from __future__ import annotations

import hashlib
import re
from base64 import b64decode, b64encode
from hmac import compare_digest
from secrets import token_bytes

from attrs import evolve, frozen

# Of a new hash: the binary logarithm of the cost, the block size, and the number of lanes. It takes
# 16 MiB and 40 ms.
LOG_N, R, P = 14, 8, 1
# Of a new hash, in bytes.
SALT_SIZE, HASH_SIZE = 16, 32
# The most bytes that the lanes of a hash need together. It bounds the time too, to two seconds.
MAX_MEMORY = 256 << 20
# In bytes. A shorter hash could match another password.
MIN_HASH = 16

_FORM = re.compile(
    r"\$scrypt\$ln=([1-9][0-9]?),r=([1-9][0-9]{0,6}),p=([1-9][0-9]{0,6})"
    r"\$([A-Za-z0-9+/]+)\$([A-Za-z0-9+/]+)"
)


@frozen
class ScryptHash:
    """The hash of a password, and what it was made with."""

    log_n: int
    r: int
    p: int
    salt: bytes
    value: bytes

    def matches(self, password: bytes) -> bool:
        """Return whether this is the hash of a password. It takes as long for any password."""
        return compare_digest(self.compute(password), self.value)

    def compute(self, password: bytes) -> bytes:
        """Return the value for a password."""
        return hashlib.scrypt(
            password,
            salt=self.salt,
            n=1 << self.log_n,
            r=self.r,
            p=self.p,
            # OpenSSL counts blocks that MAX_MEMORY does not: with ln=1, more than all others.
            maxmem=4 * MAX_MEMORY,
            dklen=len(self.value),
        )

    def __str__(self) -> str:
        salt, value = _encode(self.salt), _encode(self.value)
        return f"$scrypt$ln={self.log_n},r={self.r},p={self.p}${salt}${value}"


def new_hash(password: bytes) -> ScryptHash:
    """Return the hash of a password with a new salt."""
    empty = ScryptHash(LOG_N, R, P, token_bytes(SALT_SIZE), bytes(HASH_SIZE))
    return evolve(empty, value=empty.compute(password))


def parse_hash(text: str) -> ScryptHash:
    """Return the hash that a string stands for.

    Raises:
        ValueError: the string has another form, or its parameters are out of bounds.

    """
    match = _FORM.fullmatch(text)
    if match is None:
        raise ValueError("the hash is not of the form $scrypt$ln=14,r=8,p=1$SALT$HASH")
    log_n, r, p = (int(match[i]) for i in (1, 2, 3))
    salt, value = _decode(match[4]), _decode(match[5])
    if len(value) < MIN_HASH:
        raise ValueError(f"the hash has fewer than {MIN_HASH} bytes")
    if log_n >= 16 * r:  # RFC 7914 6
        raise ValueError("ln must be less than 16 times r")
    if (128 * r * p) << log_n > MAX_MEMORY:
        raise ValueError(f"the hash needs more than {MAX_MEMORY >> 20} MiB of memory")
    return ScryptHash(log_n, r, p, salt, value)


def _encode(value: bytes) -> str:
    return b64encode(value).decode().rstrip("=")


def _decode(text: str) -> bytes:
    try:
        return b64decode(text + "=" * (-len(text) % 4), validate=True)
    except ValueError:
        raise ValueError("the salt or the hash is not base64") from None
