"""Random batches of every kind of entry, over files that are replaced and truncated meanwhile."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

from iobatch import COPY_LIMIT, IOBatch

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from random import Random
    from typing import Self

# Mostly short: the cost of a batch is that of its entries. A range above COPY_LIMIT goes by
# sendfile.
SIZES = (1, 30, 30, 200, 200, 1000, 5000)
FILE_SIZES = (300, 300, 3000, 3000, COPY_LIMIT, 2 * COPY_LIMIT)
FILES = 8


class Batches:
    """Makes batches, and counts their hooks.

    A file is replaced by a new one, or truncated, and never written to. So the bytes of a range are
    known when it is added, and all that is sent is a prefix of them.
    """

    def __init__(self, folder: Path, random: Random) -> None:
        self.random = random
        # Pieces are cut from it: making random bytes would cost more than sending them.
        self.pool = random.randbytes(1 << 18)
        self.paths = [folder / str(i) for i in range(FILES)]
        self.contents: dict[Path, bytes] = {}
        # Each is open since its file was new; the file may have been replaced or truncated since.
        self.borrowed: dict[Path, tuple[int, bytes]] = {}
        for path in self.paths:
            self._replace(path)
        self.truncations = 0
        self.hooks = 0  # that must run
        self.released = 0  # that have run

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for fd, _ in self.borrowed.values():
            os.close(fd)
        self.borrowed.clear()

    def piece(self, size: int) -> bytes:
        start = self.random.randrange(len(self.pool) - size)
        return self.pool[start : start + size]

    def change_files(self) -> None:
        """Replace a file, or truncate one, now and then."""
        chance = self.random.random()
        path = self.random.choice(self.paths)
        if chance < 0.03:
            self._replace(path)
        elif chance < 0.04:
            size = self.random.randrange(len(self.contents[path]) + 1)
            os.truncate(path, size)
            self.truncations += 1
            self.contents[path] = self.contents[path][:size]

    def new(self) -> tuple[IOBatch, bytes]:
        """Return a batch and its bytes."""
        self.change_files()
        batch = IOBatch()
        additions = self.random.choices(self._ADDITIONS, k=self.random.randrange(1, 5))
        return batch, b"".join([add(self, batch) for add in additions])

    def new_bytes(self) -> tuple[IOBatch, bytes]:
        """Return a batch of one buffer, which takes the shortest way."""
        batch = IOBatch()
        piece = self.piece(self.random.choice(SIZES))
        batch.addbuf(piece)
        return batch, piece

    def any(self) -> tuple[IOBatch, bytes]:
        """Return a batch, and its bytes."""
        return self.new_bytes() if self.random.random() < 0.2 else self.new()

    def hook(self, *kept: object) -> Callable[[], None]:
        """Return a hook that keeps objects until it is dropped itself."""
        self.hooks += 1
        return partial(self._release, *kept)

    def _release(self, *_kept: object) -> None:
        self.released += 1

    def _replace(self, path: Path) -> None:
        content = self.piece(self.random.choice(FILE_SIZES))
        new = path.with_suffix(".new")
        new.write_bytes(content)
        if path in self.borrowed:
            os.close(self.borrowed.pop(path)[0])
        self.borrowed[path] = os.open(new, os.O_RDONLY), content
        new.rename(path)
        self.contents[path] = content

    # Each adds an entry, or some, and returns the bytes.

    def _add_bytes(self, batch: IOBatch) -> bytes:
        piece = self.piece(self.random.choice(SIZES))
        batch.addbuf(piece)
        return piece

    def _add_many(self, batch: IOBatch) -> bytes:
        pieces = [self.piece(self.random.choice(SIZES)) for _ in range(3)]
        batch.addbufs([pieces[0], bytearray(pieces[1]), pieces[2]])
        return b"".join(pieces)

    def _add_with_hook(self, batch: IOBatch) -> bytes:
        piece = bytearray(self.piece(self.random.choice(SIZES)))
        # The batch is a part of a cycle until this hook has run.
        batch.addbuf(piece, on_release=self.hook(batch, piece))
        return bytes(piece)

    def _add_path(self, batch: IOBatch) -> bytes:
        path = self.random.choice(self.paths)
        batch.addfile(path, on_release=self.hook(path))
        return self.contents[path]

    def _add_owned(self, batch: IOBatch) -> bytes:
        path = self.random.choice(self.paths)
        offset = self.random.randrange(len(self.contents[path]) + 1)
        batch.addfile_close(os.open(path, os.O_RDONLY), offset)
        return self.contents[path][offset:]

    def _add_borrowed(self, batch: IOBatch) -> bytes:
        """Add a range of a file as it was when it was new; its hook closes the descriptor."""
        fd, content = self.borrowed[self.random.choice(self.paths)]
        duplicate = os.dup(fd)
        self.hooks += 1
        batch.addfile(duplicate, 0, len(content), on_release=partial(self._close, duplicate))
        return content

    def _close(self, fd: int) -> None:
        os.close(fd)
        self.released += 1

    _ADDITIONS = (
        _add_bytes,
        _add_bytes,
        _add_many,
        _add_with_hook,
        _add_path,
        _add_owned,
        _add_borrowed,
    )
