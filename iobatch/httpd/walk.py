"""The served directory: the names that it hides, and the safe walk to a file below it."""

from __future__ import annotations

import errno
import os
from collections import deque
from contextlib import contextmanager
from pathlib import Path
from stat import S_ISDIR, S_ISLNK
from typing import TYPE_CHECKING, NamedTuple

from attrs import define, field

from iobatch.httpd.errors import close_descriptor, os_error

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

# MAXSYMLINKS of Linux (path_resolution(7)).
MAX_LINKS = 40
_PATH = os.O_PATH | os.O_NOFOLLOW
# Unlike O_PATH alone, this makes the kernel mount what an automount stands for.
_DIRECTORY = _PATH | os.O_DIRECTORY


class Place(NamedTuple):
    """The end of a walk. Both descriptors are open (O_PATH) until the walk is left."""

    # The directory that holds the file.
    parent: int
    # The file's name in that directory; not meaningful for a directory.
    name: bytes
    # The file or directory itself.
    fd: int


def _absolute(path: str | os.PathLike[str]) -> bytes:
    # ".." stays: after a symbolic link it doesn't undo the name before it.
    return bytes(Path.cwd() / os.fsdecode(path))


@define(eq=False)
class Root:
    """The served directory.

    Each walk resolves its path anew. So another directory may take its place, and a link in the
    path may be switched.
    """

    # Absolute. It may contain symbolic links.
    path: bytes = field(converter=_absolute)
    # Symbolic links may lead out of the directory.
    _follow_links: bool = False
    # Names that begin with a dot are not hidden.
    _dot_files: bool = False

    def __attrs_post_init__(self) -> None:
        # A directory that can't be served is refused here.
        os.close(self._open())

    def _open(self) -> int:
        # The dot needs search permission, as each file in the directory does.
        return os.open(self.path + b"/.", os.O_PATH | os.O_DIRECTORY)

    def hides(self, name: bytes) -> bool:
        """Return whether a file or directory of this name is neither served nor listed.

        Names that begin with a dot are not, except ".well-known", which exists to be found
        (RFC 8615). A symbolic link with a visible name is served even if its target is hidden:
        whoever made the link made it visible.
        """
        return not self._dot_files and name.startswith(b".") and name != b".well-known"

    @contextmanager
    def walk(self, names: Sequence[bytes]) -> Generator[Place]:
        """Resolve a path below the root.

        Each name and each symbolic link is resolved here, relative to a directory that is open. A
        link may lead out of the root and back into it, and must end inside. So the walk ends
        inside, whatever is moved or replaced meanwhile. Where links are followed, they may end
        anywhere.

        Args:
            names: the path's decoded names; empty names and "." stand for the directory itself.

        Raises:
            OSError: the path does not exist, or leaves the root (EACCES).

        """
        trail = _Trail(self._open(), may_leave=self._follow_links)
        try:
            for i, name in enumerate(names, 1):
                trail.follow(name, directory=i < len(names))
            yield trail.end
        finally:
            trail.close()


class _Trail:
    """The way of a walk: open directories, each in the one before it, and at the end the file."""

    def __init__(self, root: int, *, may_leave: bool) -> None:
        """Begin at the root, and own its descriptor."""
        self._fds = [root]
        # Links may end outside the root.
        self._may_leave = may_leave
        # The root's position in the trail; -1: the trail is outside the root.
        self._root_at = 0
        # The name by which the last part was reached.
        self._name = b"."
        self._links = 0
        try:
            self._root = os.fstat(root)
        except OSError:  # a network file system has lost the root
            self.close()
            raise

    @property
    def end(self) -> Place:
        """The last part of the trail."""
        return Place(self._fds[max(len(self._fds) - 2, 0)], self._name, self._fds[-1])

    def close(self) -> None:
        """Close all descriptors."""
        while self._fds:
            self._pop()

    def follow(self, name: bytes, *, directory: bool) -> None:
        """Go to an entry of the directory; if it is a link, to the end of that.

        Args:
            name: the entry's.
            directory: the end must be a directory.

        Raises:
            OSError: there is no such entry, or it ends outside the root, which the trail must not
                leave (EACCES).

        """
        todo = deque([name])
        while todo:
            name = todo.popleft()
            if name == b"..":
                self._up()
            elif name not in {b"", b"."}:
                link = self._down(name, directory=directory or bool(todo))
                if link is not None:
                    self._links += 1
                    if self._links > MAX_LINKS:
                        raise os_error(errno.ELOOP)
                    if link.startswith(b"/"):
                        self.close()
                        self._append(os.open(b"/", _DIRECTORY))
                    todo.extendleft(reversed(link.split(b"/")))
        if self._root_at < 0 and not self._may_leave:
            raise os_error(errno.EACCES)

    def _up(self) -> None:
        """Go to the parent of the directory."""
        if len(self._fds) > 1:
            self._pop()
        else:
            parent = os.open(b"..", _DIRECTORY, dir_fd=self._fds[0])
            self._pop()
            self._append(parent)

    def _down(self, name: bytes, *, directory: bool) -> bytes | None:
        """Go to an entry of the directory; if it is a link, stay and return the path in it."""
        here = self._fds[-1]
        if directory:
            try:
                self._append(os.open(name, _DIRECTORY, dir_fd=here))
            except NotADirectoryError:
                pass  # perhaps a link
            else:
                return None
        fd = os.open(name, _PATH, dir_fd=here)
        self._append(fd)
        self._name = name
        mode = os.fstat(fd).st_mode
        if S_ISLNK(mode):
            link = os.readlink(b"", dir_fd=fd)
            self._pop()
            return link
        if directory and not S_ISDIR(mode):
            raise os_error(errno.ENOTDIR)
        return None

    def _append(self, fd: int) -> None:
        self._fds.append(fd)
        if self._root_at < 0 and os.path.samestat(os.fstat(fd), self._root):
            self._root_at = len(self._fds) - 1

    def _pop(self) -> None:
        close_descriptor(self._fds.pop())
        if self._root_at == len(self._fds):
            self._root_at = -1
