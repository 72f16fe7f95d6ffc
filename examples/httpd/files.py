"""The files below one directory: from a request's target to a file that is open."""

from __future__ import annotations

import errno
import os
import re
from collections import deque
from contextlib import contextmanager, suppress
from functools import lru_cache
from hashlib import blake2b
from mimetypes import guess_type
from stat import S_ISDIR, S_ISLNK, S_ISREG
from time import time
from typing import TYPE_CHECKING
from urllib.parse import quote_from_bytes, unquote_to_bytes

from attrs import define, field

from codings import MIN_CODED, compressible
from listing import Entry, page

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

INDEX = b"index.html"
# An open file is used again without asking the file system for so many seconds, and so many files
# are kept open for that.
FRESH = 1.0
MAX_OPEN = 256
# Files up to here are kept in memory, too, as long as they are kept open.
SMALL = 4096
# What is in the files beside a file, the smallest first.
SUFFIXES = {"br": b".br", "zstd": b".zst", "gzip": b".gz"}
# A host and its port (RFC 3986 3.2.2), but for the comma: it would be between two of them.
_HOST = re.compile(rb"(\[[\w.~!$&'()*+;=:%-]+\]|[\w.~!$&'()*+;=%-]*)(:[0-9]*)?")
# MAXSYMLINKS of Linux (path_resolution(7)).
MAX_LINKS = 40

# A file that is compressed is served as what it is, not as what it will be when it is unpacked.
_TYPE_OF_ENCODING = {
    "br": "application/x-brotli",
    "bzip2": "application/x-bzip2",
    "compress": "application/x-compress",
    "gzip": "application/gzip",
    "xz": "application/x-xz",
}


@define(eq=False)
class OpenFile:
    """A regular file, open for reading until nothing refers to it any more.

    So one that has left the cache stays open as long as a batch still sends it.
    """

    fd: int
    size: int
    # Seconds since 1970; None: nobody knows.
    modified: float | None
    content_type: str
    # Until when it is used without another look at the file system (time.monotonic).
    fresh_until: float
    # What an entity tag is made of; a weak one, if other bytes may have the same.
    tag: str
    weak: bool = False
    # The decoded names of its path.
    names: Sequence[bytes] = ()
    # The content coding that the file itself has; "": none.
    coding: str = ""
    # It may be sent in a content coding that is made on the fly.
    compressible: bool = field(init=False)
    # The files beside it with the same content in a content coding, by coding.
    siblings: dict[str, OpenFile] = field(init=False, factory=dict)
    # What is sent depends on the codings that the client takes.
    varies: bool = field(init=False)
    # The heads of its responses by content coding: kept here because they live just as long.
    heads: dict[str, bytes] = field(init=False, factory=dict)
    # All of it, if that is no more than SMALL: so a response takes a system call less.
    content: bytes | None = field(init=False, default=None)

    def __attrs_post_init__(self) -> None:
        self.compressible = self.size >= MIN_CODED and compressible(self.content_type)
        self.varies = self.compressible

    def fileno(self) -> int:
        """Return the descriptor."""
        return self.fd

    def __del__(self) -> None:
        os.close(self.fd)


def real_path(path: str | os.PathLike[str]) -> bytes:
    """Return an absolute path without links."""
    return os.path.realpath(os.fsencode(path))


@define(eq=False)
class Files:
    """The regular files below one directory, with the descriptors of those asked for lately.

    A descriptor is used for FRESH seconds, then the path is walked and the file opened anew. So one
    that was replaced is served whole, the old or the new one, and the new one at most so much
    later. What is written over in place may be served mixed, here as anywhere.
    """

    directory: bytes = field(converter=real_path)
    # A directory without an index is shown as a page.
    _listing: bool = True
    _root: int = field(init=False)
    # In the order in which they were opened, by their paths as they are mostly written: so each
    # file or page is here once, however many ways there are to write its path.
    _cache: dict[bytes, OpenFile] = field(init=False, factory=dict)

    def __attrs_post_init__(self) -> None:
        # With the dot it fails if nothing in it could be opened.
        self._root = os.open(self.directory + b"/.", os.O_PATH | os.O_DIRECTORY)

    def close(self) -> None:
        """Close the directory, and the files that no batch refers to."""
        self._cache.clear()
        os.close(self._root)

    def __len__(self) -> int:
        return len(self._cache)

    def sweep(self, now: float) -> None:
        """Let go the files that would not be used again without being opened again."""
        cache = self._cache
        while cache and (oldest := next(iter(cache.values()))).fresh_until <= now:
            del cache[next(iter(cache))]
            del oldest

    def get(self, target: bytes, now: float) -> OpenFile:
        """Return the file for a request's target.

        Args:
            target: as the request has it.
            now: time.monotonic().

        Raises:
            OSError: there is none that may be served; with EINVAL, the target is no path.
            IsADirectoryError: it is a directory, and the target has no slash at its end.

        """
        cache = self._cache
        file = cache.get(target)
        if file is None or file.fresh_until <= now:
            path, _ = split_target(target)
            names = split_path(path)
            if path.endswith(b"/"):
                names.append(b"")
            key = quote_from_bytes(b"/".join((b"", *names))).encode()
            file = cache.get(key)
            if file is None or file.fresh_until <= now:
                file = self._open(names, now)
                self._add_siblings(file, now)
                cache.pop(key, None)
                if len(cache) >= MAX_OPEN:
                    del cache[next(iter(cache))]
                cache[key] = file
        return file

    def _open(self, names: Sequence[bytes], now: float) -> OpenFile:
        """Open what a path stands for; behind a directory's name an empty one means its index."""
        try:
            file = self._open_below(names, now)
        except OSError as exc:
            if exc.errno not in {errno.EMFILE, errno.ENFILE}:
                raise
            self._cache.clear()  # The cache has some.
            file = self._open_below(names, now)
        if names[-1]:
            if file is None:
                raise _failure(errno.EISDIR)
            return file
        folder = names[:-1]
        with suppress(FileNotFoundError):
            file = self._open_below([*folder, INDEX], now)
        if file is None:
            if not self._listing:
                raise _failure(errno.EACCES)
            file = self._list(folder, now)
        return file

    def _add_siblings(self, file: OpenFile, now: float) -> None:
        """Open the files beside one that have its content in a content coding."""
        if not file.names:
            return
        *names, last = file.names
        with suppress(OSError), self._walk(names) as (_, _, folder):
            for coding, suffix in SUFFIXES.items():
                with suppress(OSError):
                    # Mostly there is none, which is told sooner so.
                    os.stat(last + suffix, dir_fd=folder, follow_symlinks=False)
                    found = self._open_below([*names, last + suffix], now)
                    # What is older than the file was made of another one.
                    if found is not None and int(found.modified or 0) >= int(file.modified or 0):
                        found.coding = coding
                        found.content_type = file.content_type
                        found.varies = file.varies = True
                        file.siblings[coding] = found

    def _open_below(self, names: Sequence[bytes], now: float) -> OpenFile | None:
        """Open a regular file; None: it is a directory."""
        with self._walk(names) as (parent, name, here):
            mode = os.fstat(here).st_mode
            if S_ISDIR(mode):
                return None
            if not S_ISREG(mode):
                raise _failure(errno.EACCES)
            # O_NONBLOCK: it may have become a named pipe since.
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
            fd = os.open(name, flags, dir_fd=parent)
        status = os.fstat(fd)
        file = OpenFile(
            fd,
            status.st_size,
            status.st_mtime,
            content_type(names[-1]),
            now + FRESH,
            # By when the inode was changed: that can't be set back as the file's date can, and is
            # when a file took another one's place.
            f"{status.st_ctime_ns:x}-{status.st_size:x}",
            # It may change once more before its clock has gone on.
            weak=time() - status.st_mtime < 1,
            names=names,
        )
        if not S_ISREG(status.st_mode):
            raise _failure(errno.EACCES)
        if file.size <= SMALL:
            content = os.pread(fd, SMALL + 1, 0)
            if len(content) == file.size:  # else it is just being written
                file.content = content
        return file

    def _list(self, names: Sequence[bytes], now: float) -> OpenFile:
        """Return a directory's page, as a file that has no name."""
        with self._walk(names) as (_, _, here):
            fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=here)
        entries = []
        try:
            with os.scandir(fd) as found:
                for each in found:
                    name = os.fsencode(each.name)
                    # What is not served isn't shown, nor how large it is.
                    with suppress(OSError):
                        entries.append(self._entry([*names, name], each))
        finally:
            os.close(fd)
        content = page(names, entries)
        tag = blake2b(content, digest_size=12).hexdigest()
        fd = os.memfd_create("listing")  # in memory: no disk has to have room for it
        file = OpenFile(fd, len(content), None, "text/html; charset=utf-8", now + FRESH, tag)
        with open(fd, "wb", closefd=False) as writer:
            writer.write(content)
        return file

    def _entry(self, names: Sequence[bytes], found: os.DirEntry[str]) -> Entry:
        """Return what a page says of a file or directory."""
        check_name(names[-1])
        if found.is_symlink():
            with self._walk(names) as (_, _, here):
                status = os.fstat(here)
        else:
            status = found.stat(follow_symlinks=False)
        if not (S_ISREG(status.st_mode) or S_ISDIR(status.st_mode)):
            raise _failure(errno.EACCES)
        return Entry(names[-1], status.st_size, status.st_mtime, S_ISDIR(status.st_mode))

    @contextmanager
    def _walk(self, names: Sequence[bytes]) -> Iterator[tuple[int, bytes, int]]:
        """Give the directory and the name where a path ends, and what is there, open (O_PATH).

        The way from the root is walked here, name by name and link by link, each name relative to
        a directory that is open: so it ends inside, whatever links say, and whoever moves and
        replaces what while this runs.
        """
        todo = deque(names)
        trail = [self._root]  # the directories from the root to here, and at the end the file
        is_directory = True  # the last of them
        links = 0
        last = b"."
        try:
            while todo:
                name = todo.popleft()
                if name in {b"", b".", b".."} and not is_directory:
                    raise _failure(errno.ENOTDIR)
                if name in {b"", b"."}:
                    continue
                if name == b"..":  # A link says so, and means what is here, not in a path's text.
                    if len(trail) == 1:
                        raise _failure(errno.EACCES)
                    os.close(trail.pop())
                    continue
                here = os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=trail[-1])
                trail.append(here)
                last = name
                mode = os.fstat(here).st_mode
                # A link gives way to the directory that it is in.
                is_directory = S_ISDIR(mode) or S_ISLNK(mode)
                if S_ISLNK(mode):
                    links += 1
                    if links > MAX_LINKS:
                        raise _failure(errno.ELOOP)
                    link = os.readlink(b"", dir_fd=here)
                    os.close(trail.pop())
                    if link.startswith(b"/"):
                        link = self._inside(link)
                        while len(trail) > 1:
                            os.close(trail.pop())
                    todo.extendleft(reversed(link.split(b"/")))
            yield trail[-2] if len(trail) > 1 else self._root, last, trail[-1]
        finally:
            for here in trail[1:]:
                os.close(here)

    def _inside(self, link: bytes) -> bytes:
        """Return the rest of an absolute link that points into the directory."""
        prefix = self.directory.rstrip(b"/")
        if link != prefix and not link.startswith(prefix + b"/"):
            raise _failure(errno.EACCES)
        return link[len(prefix) :]


def split_target(target: bytes) -> tuple[bytes, bytes]:
    """Return the path and the query ("?" included) of a request's target (RFC 9112 3.2).

    Raises:
        OSError: EINVAL: it is neither a path nor an absolute http address.

    """
    if not target.startswith(b"/"):
        scheme, _, rest = target.partition(b"://")
        if scheme.lower() not in {b"http", b"https"}:
            raise _failure(errno.EINVAL)
        # The path may be empty, with a query or without. The host may not (RFC 9110 4.2.1).
        end = min((i for i in (rest.find(b"/"), rest.find(b"?")) if i >= 0), default=len(rest))
        if rest[:end].startswith(b":") or not rest[:end] or not is_host(rest[:end]):
            raise _failure(errno.EINVAL)
        target = rest[end:]
        if not target.startswith(b"/"):
            target = b"/" + target
    path, mark, query = target.partition(b"?")
    return path, mark + query


@lru_cache(maxsize=64)
def is_host(value: bytes) -> bool:
    """Tell whether something could be a host, maybe with a port."""
    return _HOST.fullmatch(value) is not None


def split_path(path: bytes) -> list[bytes]:
    """Return the decoded names of a path.

    Raises:
        OSError: EINVAL: a name is none that a file could have, or a step to elsewhere. Clients
            take out "." and ".." themselves (RFC 3986 5.2.4).
        FileNotFoundError: a name is hidden.

    """
    names = [unquote_to_bytes(name) for name in path.split(b"/") if name]
    for name in names:
        if name in {b".", b".."} or b"/" in name or b"\0" in name:
            raise _failure(errno.EINVAL)
    for name in names:
        check_name(name)
    return names


def check_name(name: bytes) -> None:
    """Raise FileNotFoundError for a name that is hidden.

    A link to such a name is not hidden itself: who made it wants it to be seen. What is well known
    is there to be found (RFC 8615).
    """
    if name.startswith(b".") and name != b".well-known":
        raise _failure(errno.ENOENT)


def content_type(name: bytes) -> str:
    """Return the media type for a file's name."""
    # The slash: otherwise "a:b" would be taken for an address.
    media_type, encoding = guess_type("/" + os.fsdecode(name), strict=False)
    if encoding is not None:
        return _TYPE_OF_ENCODING.get(encoding, "application/octet-stream")
    if media_type is None:
        return "application/octet-stream"
    return f"{media_type}; charset=utf-8" if media_type.startswith("text/") else media_type


def _failure(number: int) -> OSError:
    return OSError(number, os.strerror(number))
