"""Files: from the names of a path to an open file and its metadata."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from stat import S_ISDIR, S_ISREG
from time import time
from typing import TYPE_CHECKING

from attrs import Factory, define, field

from iobatch._files import file_version, version_of
from iobatch.httpd.codings import MIN_CODED, compressible
from iobatch.httpd.conditions import content_tag, file_tag
from iobatch.httpd.errors import close_descriptor, os_error
from iobatch.httpd.mediatypes import content_coding, content_type
from iobatch.httpd.walk import Root

if TYPE_CHECKING:
    from collections.abc import Sequence

INDEX = b"index.html"
# The suffix that paths may leave out.
HTML = b".html"
# The content of files up to this size, in bytes, is kept in memory with the descriptor.
MAX_KEPT_CONTENT = 4096
# The most bytes of a file that does not report its size; a larger one is refused.
MAX_UNSIZED_CONTENT = 1 << 20
# The suffixes of files that hold another file's content in a coding, in order of preference: the
# coding that usually makes the smallest file is first.
SUFFIXES = {"br": b".br", "zstd": b".zst", "gzip": b".gz"}


@define(eq=False)
class ServedFile:
    """A regular file or content in memory, open until the last reference to it is gone.

    A connection refers to the files that it sends. So a file that leaves the cache stays open until
    it is sent.
    """

    fd: int
    # What file_version() returned when the file was opened.
    _version: tuple[int, int, int]
    content_type: str
    # The opaque part of the entity tag.
    tag: str
    # Seconds since 1970, as in Last-Modified; None: unknown.
    modified: int | None = None
    # The entity tag is weak: the file may change once more with the same tag.
    weak: bool = False
    # The decoded names of its path; empty for a listing.
    names: Sequence[bytes] = ()
    # The content coding of the file's bytes; "": none.
    coding: str = ""
    # In bytes.
    size: int = field(init=False)
    # The file may be coded on the fly.
    compressible: bool = field(init=False, default=False)
    # Files in the same directory that hold the same content, by their content coding.
    siblings: dict[str, ServedFile] = field(init=False, factory=dict[str, "ServedFile"])
    # The header fields of the request on which the response depends, as in Vary.
    vary: str = field(init=False, default="")
    # Of a response with the whole file. With 404 it has neither validators nor ranges.
    status: int = field(init=False, default=200)
    # The heads of responses with the whole file, by content coding. Like this object, they describe
    # one version of the file.
    heads: dict[str, bytes] = field(init=False, factory=dict[str, bytes])
    # The content of a file of at most MAX_KEPT_CONTENT bytes, which is sent without a system call
    # to read it; None: the file is longer, or is read for each use.
    content: bytes | None = field(init=False, default=None)

    def __attrs_post_init__(self) -> None:
        self.size, _, _ = self._version

    def fileno(self) -> int:
        """Return the descriptor."""
        return self.fd

    def is_current(self) -> bool:
        """Return whether neither the file nor a sibling has been changed, replaced or deleted.

        The inode's time of change is also that of a change of its number of links. An overlay
        whose lower file is replaced by an upper one keeps the lower one open, unchanged.
        """
        try:
            if file_version(self.fd) != self._version:
                return False
        except OSError:
            return False  # a network file system has lost the file
        return not self.siblings or all(each.is_current() for each in self.siblings.values())

    def __del__(self) -> None:
        close_descriptor(self.fd)


@define(eq=False)
class Files:
    """The files below one directory."""

    _path: str | os.PathLike[str]
    # A directory without an index is answered with a listing.
    _listing: bool = field(default=True, alias="listing")
    # Files are coded on the fly, and those beside them that hold their content in a coding are sent
    # in place of them.
    compress: bool = True
    # Paths may leave out the suffix HTML.
    _clean_urls: bool = field(default=False, alias="clean_urls")
    # As for Root.
    _follow_links: bool = field(default=False, alias="follow_links")
    _dot_files: bool = field(default=False, alias="dot_files")
    root: Root = field(
        init=False,
        default=Factory(
            lambda self: Root(self._path, self._follow_links, self._dot_files), takes_self=True
        ),
    )

    def open(self, names: Sequence[bytes]) -> ServedFile | None:
        """Open the file for a path, with the files beside it that hold its content in a coding.

        Args:
            names: the path's decoded names. If the last is empty, the path is a directory's, and
                stands for its index.

        Returns:
            None: the directory has no index, and may be listed.

        Raises:
            OSError: there is no such file, or it must not be served.
            IsADirectoryError: the path leads to a directory, and its last name is not empty.

        """
        if any(map(self.root.hides, names)):
            raise os_error(errno.ENOENT)
        file = self._open_named(names) if names[-1] else self._open_regular(names)
        if names[-1]:
            if file is None:
                raise os_error(errno.EISDIR)
        else:
            folder = names[:-1]
            with suppress(FileNotFoundError):
                file = self._open_regular([*folder, INDEX])
            if file is None:
                if not self._listing:
                    raise os_error(errno.EACCES)
                return None
        if self.compress and not file.coding and compressible(file.content_type):
            if file.size >= MIN_CODED:
                file.compressible, file.vary = True, "Accept-Encoding"
            self._add_siblings(file)
        return file

    def _open_named(self, names: Sequence[bytes]) -> ServedFile | None:
        """Open the file at a path, or else the one with the suffix HTML; None: a directory."""
        try:
            return self._open_regular(names) or self._open_html(names)
        except FileNotFoundError:
            file = self._open_html(names)
            if file is None:
                raise
            return file

    def _open_html(self, names: Sequence[bytes]) -> ServedFile | None:
        """Open the file whose suffix HTML a path leaves out; None: there is none."""
        page = names[-1] + HTML
        if self._clean_urls and not self.root.hides(page):  # .well-known.html is hidden
            try:
                return self._open_regular([*names[:-1], page])
            except OSError as exc:
                # A directory's name may leave no room for the suffix.
                if exc.errno not in {errno.ENOENT, errno.ENAMETOOLONG}:
                    raise
        return None

    def _open_regular(self, names: Sequence[bytes]) -> ServedFile | None:
        """Open a regular file; return None for a directory."""
        with self.root.walk(names) as place:
            mode = os.fstat(place.fd).st_mode
            if S_ISDIR(mode):
                return None
            if not S_ISREG(mode):
                raise os_error(errno.EACCES)
            # O_NONBLOCK: a FIFO may have replaced the file since, and its open would block.
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
            fd = os.open(place.name, flags, dir_fd=place.parent)
        return _describe(fd, names)

    def _add_siblings(self, file: ServedFile) -> None:
        """Open the files beside a file that hold its content in a content coding."""
        *folder, name = file.names
        with suppress(OSError), self.root.walk(folder) as place:
            for coding, suffix in SUFFIXES.items():
                with suppress(OSError):
                    # Few files have siblings. This call finds a missing one without a walk.
                    os.stat(name + suffix, dir_fd=place.fd, follow_symlinks=False)
                    sibling = self._open_regular([*folder, name + suffix])
                    # A sibling that is older than the file holds an earlier version.
                    if sibling and (sibling.modified or 0) >= (file.modified or 0):
                        sibling.coding = coding
                        sibling.content_type = file.content_type
                        sibling.vary = file.vary = "Accept-Encoding"
                        file.siblings[coding] = sibling


def _describe(fd: int, names: Sequence[bytes]) -> ServedFile:
    """Return the file for a descriptor, which it then owns."""
    try:
        status = os.fstat(fd)
    except OSError:
        close_descriptor(fd)
        raise
    now = time()
    # A program may have set a time in the future, but did so before.
    modified = min(status.st_mtime_ns, status.st_ctime_ns) // 10**9
    file = ServedFile(
        fd,
        version_of(status),
        content_type(names[-1]),
        file_tag(status),
        max(modified, 0) if modified <= now else None,
        # The file system's clock has a resolution: two changes may share one time.
        weak=abs(now - status.st_ctime) < 1,
        names=names,
        coding=content_coding(names[-1]),
    )
    if not S_ISREG(status.st_mode):
        raise os_error(errno.EACCES)
    # Files in /proc report no bytes, and those in /sys a page. None of them takes a block.
    if file.size <= MAX_KEPT_CONTENT or not status.st_blocks:
        content = os.pread(fd, MAX_KEPT_CONTENT + 1, 0)
        if file.is_current():  # otherwise the file is being written
            if len(content) != min(file.size, MAX_KEPT_CONTENT + 1):
                content = _read_unsized(fd)
                return in_memory(content, content_tag(content), file.content_type, names=names)
            if len(content) <= MAX_KEPT_CONTENT and not file.weak:
                file.content = content
    return file


def _read_unsized(fd: int) -> bytes:
    """Return the content of a file that does not report its size.

    Raises:
        OSError: EFBIG: there are more than MAX_UNSIZED_CONTENT bytes.

    """
    content = bytearray()
    while piece := os.pread(fd, MAX_UNSIZED_CONTENT + 1 - len(content), len(content)):
        content += piece
    if len(content) > MAX_UNSIZED_CONTENT:
        raise os_error(errno.EFBIG)
    return bytes(content)


def in_memory(
    content: bytes, tag: str, content_type: str, *, names: Sequence[bytes] = (), coding: str = ""
) -> ServedFile:
    """Return content as a file without a date."""
    fd = os.memfd_create("content")
    try:
        with os.fdopen(fd, "wb", closefd=False) as writer:
            writer.write(content)
        version = file_version(fd)
    except OSError:
        close_descriptor(fd)
        raise
    return ServedFile(fd, version, content_type, tag, names=names, coding=coding)
