"""The directory that is served, whose files are replaced, truncated, deleted and created."""

from __future__ import annotations

import gzip
import os
import shutil
from collections import deque
from contextlib import suppress
from hashlib import sha256
from threading import Lock
from typing import TYPE_CHECKING

from tests.soak.peers import is_zeroed
from tests.support.httpd import prose

if TYPE_CHECKING:
    from pathlib import Path
    from random import Random

STEADY = "/steady.txt"
# The names of the files that change, and their sizes in bytes.
CHANGING = {
    "empty.txt": 0,
    "tiny.txt": 20,
    "small.txt": 3000,
    "page.html": 30_000,
    "picture.png": 40_000,
    "large.bin": 150_000,
    "large.txt": 150_000,
}
# The latest versions of each file whose content is known; of all, the hashes are known.
LATEST = 60


class Site:
    """A directory, and every version of each of its files."""

    def __init__(self, root: Path, random: Random) -> None:
        self.root = root
        self.steady = prose(20_000)
        self._random = random
        self._lock = Lock()
        self._text = prose(1 << 18, seed=1)
        self._noise = random.randbytes(1 << 18)
        self._hashes: dict[str, set[bytes]] = {name: set() for name in CHANGING}
        self._latest: dict[str, deque[bytes]] = {name: deque(maxlen=LATEST) for name in CHANGING}
        self._truncated: set[str] = set()
        self.changes = 0
        root.mkdir()
        (root / STEADY[1:]).write_bytes(self.steady)
        (root / "moving-a").mkdir()
        (root / "moving-a" / "inside.txt").write_bytes(self.steady)
        for name in CHANGING:
            self._replace(name)
        self.paths = [
            STEADY,
            *(f"/{name}" for name in CHANGING),
            "/",
            "/moving-a/inside.txt",
            "/moving-b/inside.txt",
            "/moving-a/",
            "/coming/",
            "/nothing",
        ]
        self.names = {*CHANGING, STEADY[1:], "moving-a", "moving-b", "coming", "inside.txt"}

    def change(self) -> None:
        """Change something."""
        with self._lock:
            self.changes += 1
            name = self._random.choice(list(CHANGING))
            chance = self._random.random()
            # A file may be missing, and a directory too.
            with suppress(FileNotFoundError, FileExistsError):
                if chance < 0.5:
                    self._replace(name)
                elif chance < 0.65:
                    self._truncate(name)
                elif chance < 0.75:
                    (self.root / name).unlink()
                elif chance < 0.9:
                    one, other = self.root / "moving-a", self.root / "moving-b"
                    (one if one.exists() else other).rename(other if one.exists() else one)
                elif (self.root / "coming").exists():
                    shutil.rmtree(self.root / "coming")
                else:
                    (self.root / "coming").mkdir()
                    (self.root / "coming" / "inside.txt").write_bytes(self.steady)

    def is_version(self, path: str, body: bytes) -> bool:
        """Return whether a file has had a content."""
        name = path[1:]
        if name not in CHANGING:
            return body == self.steady
        with self._lock:
            if sha256(body).digest() in self._hashes[name]:
                return True
            return name in self._truncated and any(
                is_zeroed(content, body) for content in self._latest[name]
            )

    def is_part(self, path: str, body: bytes, start: int, total: int) -> bool:
        """Return whether a file of a size has had a content at an offset."""
        name = path[1:]
        contents = [self.steady]
        if name in CHANGING:
            with self._lock:
                contents = list(self._latest[name])
        parts = [each[start : start + len(body)] for each in contents if len(each) == total]
        return body in parts or (
            name in self._truncated and any(is_zeroed(part, body) for part in parts)
        )

    def _add(self, name: str, content: bytes) -> None:
        self._latest[name].append(content)
        self._hashes[name].add(sha256(content).digest())

    def _replace(self, name: str) -> None:
        size = CHANGING[name]
        source = self._noise if name.endswith(("png", "bin")) else self._text
        start = self._random.randrange(len(source) - size)
        content = source[start : start + size + self._random.randrange(2)]
        self._add(name, content)
        new = self.root / f".{name}"
        new.write_bytes(content)
        new.rename(self.root / name)

    def _truncate(self, name: str) -> None:
        content = (self.root / name).read_bytes()
        size = self._random.choice((0, len(content) // 2))
        self._add(name, content[:size])
        self._truncated.add(name)
        os.truncate(self.root / name, size)


def decoded(coding: str | None, body: bytes) -> bytes:
    """Return a body without its content coding."""
    return gzip.decompress(body) if coding == "gzip" else body
