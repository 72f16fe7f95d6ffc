"""The safe walk: from the served directory to a file below it, and never out of it."""

from __future__ import annotations

import errno
import os
from collections import deque
from contextlib import contextmanager
from stat import S_ISDIR, S_ISLNK
from typing import TYPE_CHECKING, NamedTuple

from attrs import define, field

from iobatch.httpd.errors import os_error

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

# MAXSYMLINKS of Linux (path_resolution(7)).
MAX_LINKS = 40


class Place(NamedTuple):
    """The end of a walk. Both descriptors are open (O_PATH) until the walk is left."""

    # The directory that holds the file.
    parent: int
    # The file's name in that directory.
    name: bytes
    # The file or directory itself.
    fd: int


def _real_path(path: str | os.PathLike[str]) -> bytes:
    return os.path.realpath(os.fsencode(path))


@define(eq=False)
class Root:
    """The served directory, open for as long as it is served."""

    # Absolute, without symbolic links.
    path: bytes = field(converter=_real_path)
    _fd: int = field(init=False)

    def __attrs_post_init__(self) -> None:
        # The dot needs search permission: a directory whose files can't be opened is refused here.
        self._fd = os.open(self.path + b"/.", os.O_PATH | os.O_DIRECTORY)

    def close(self) -> None:
        """Close the directory."""
        os.close(self._fd)

    @contextmanager
    def walk(self, names: Sequence[bytes]) -> Generator[Place]:
        """Resolve a path below the root.

        Each name and each symbolic link is resolved here, relative to a directory that is open. So
        the walk ends inside the root, whatever the links say, and whatever is moved or replaced
        meanwhile.

        Args:
            names: the path's decoded names; empty names and "." stand for the directory itself.

        Raises:
            OSError: the path does not exist, or leaves the root (EACCES).

        """
        todo = deque(names)
        trail = [self._fd]  # the root, the directories below it, and at the end the file
        is_directory = True  # the last of the trail
        links = 0
        last = b"."
        try:
            while todo:
                name = todo.popleft()
                if name in {b"", b".", b".."} and not is_directory:
                    raise os_error(errno.ENOTDIR)
                if name in {b"", b"."}:
                    continue
                if name == b"..":  # from a link: the parent of this directory, not of the path
                    if len(trail) == 1:
                        raise os_error(errno.EACCES)
                    os.close(trail.pop())
                    continue
                here = os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=trail[-1])
                trail.append(here)
                last = name
                mode = os.fstat(here).st_mode
                # A link leaves the trail again, and then the last is the directory that holds it.
                is_directory = S_ISDIR(mode) or S_ISLNK(mode)
                if S_ISLNK(mode):
                    links += 1
                    if links > MAX_LINKS:
                        raise os_error(errno.ELOOP)
                    link = os.readlink(b"", dir_fd=here)
                    os.close(trail.pop())
                    if link.startswith(b"/"):
                        link = self._relative(link)
                        while len(trail) > 1:
                            os.close(trail.pop())
                    todo.extendleft(reversed(link.split(b"/")))
            yield Place(trail[-2] if len(trail) > 1 else self._fd, last, trail[-1])
        finally:
            for fd in trail[1:]:
                os.close(fd)

    def _relative(self, link: bytes) -> bytes:
        """Return an absolute link's path relative to the root.

        Raises:
            OSError: EACCES: the link leads out of the root.

        """
        prefix = self.path.rstrip(b"/")
        if link != prefix and not link.startswith(prefix + b"/"):
            raise os_error(errno.EACCES)
        return link[len(prefix) :]
