"""Targets of requests, and the walk to their files: nothing outside the root is named."""

from __future__ import annotations

import atexit
import errno
import os
import posixpath
import shutil
from functools import cache
from itertools import zip_longest
from pathlib import Path
from tempfile import mkdtemp
from urllib.parse import quote_from_bytes, unquote_to_bytes

from iobatch.httpd.files import Files
from iobatch.httpd.targets import split_path, split_target
from tests.support.httpd import SECRET

# The links of a tree, relative to its root. Each is replaced for each input.
_LINKS = (b"l", b"m", b"d/l", b"d/e/l")
_PUBLIC = b"public"
_REFUSALS = {
    errno.EACCES,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.ENOTDIR,
}


def targets(data: bytes) -> None:
    """Assert that a path has the names of its decoded form in POSIX, none of them above the root.

    The path of these names has the same names.
    """
    try:
        path, query = split_target(data)
        names = split_path(path)
    except OSError as exc:
        if exc.errno != errno.EINVAL:
            raise
        if data.startswith(b"/"):
            assert _is_refused(data.partition(b"?")[0])
        return
    assert path.startswith(b"/")
    assert not query or query.startswith(b"?")
    assert data.endswith((path + query, query))
    assert not _is_refused(path)
    assert all(b"/" not in name and b"\0" not in name for name in names)
    assert not {b".", b".."} & set(names)
    assert b"" not in names[:-1]
    again = quote_from_bytes(b"/".join((b"", *names))).encode()
    assert split_path(again) == names
    decoded = unquote_to_bytes(path)
    normal = posixpath.normpath(b"/" + decoded.lstrip(b"/")).lstrip(b"/")
    assert b"/".join(names).rstrip(b"/") == normal
    is_directory = decoded.rpartition(b"/")[2] in {b"", b".", b".."}
    assert (names[-1] == b"") is is_directory


def _is_refused(path: bytes) -> bool:
    """Return whether a path is badly encoded, names no file, or leads above the root."""
    if any(
        i + 3 > len(path) or not set(path[i + 1 : i + 3]) <= set(b"0123456789abcdefABCDEF")
        for i, byte in enumerate(path)
        if byte == ord("%")
    ):
        return True
    depth = 0
    for segment in path.split(b"/"):
        name = unquote_to_bytes(segment)
        if b"/" in name or b"\0" in name:
            return True
        depth += {b"": 0, b".": 0, b"..": -1}.get(name, 1)
        if depth < 0:
            return True
    return False


def walk(data: bytes) -> None:
    """Assert that a path over links leads to the file that realpath() finds below the root.

    The input is a path, and on the lines after it the links of a tree; "@" is the root's path.
    """
    files = _tree()
    root = files.root.path
    path, *links = data.split(b"\n")
    for name, link in zip_longest(_LINKS, links[: len(_LINKS)], fillvalue=b""):
        where = Path(os.fsdecode(root + b"/" + name))
        where.unlink(missing_ok=True)
        if link and b"\0" not in link:
            where.symlink_to(os.fsdecode(link.replace(b"@", root)[:4000]))
    try:
        names = split_path(b"/" + path)
    except OSError:
        return
    try:
        file = files.open(names)
    except OSError as exc:
        if exc.errno not in _REFUSALS:
            raise
        result = b"a directory" if exc.errno == errno.EISDIR else b"refused"
    else:
        result = b"a listing"
        if file is not None:
            result = bytes(Path(f"/proc/self/fd/{file.fd}").readlink())
            assert os.pread(file.fd, 100, 0) == _PUBLIC
    assert result == _resolve(root, names)


def _resolve(root: bytes, names: list[bytes]) -> bytes:
    """Return the file that a path leads to, or what else it leads to, by the standard library."""
    if any(name.startswith(b".") and name != b".well-known" for name in names):
        return b"refused"
    base = Path(os.fsdecode(root))
    *folders, last = map(os.fsdecode, names)
    path = base
    try:
        path.joinpath(*folders, last).stat()  # has the kernel's limit of links
        for name in folders:
            path = (path / name).resolve(strict=True)
            if not path.is_dir() or not path.is_relative_to(base):
                return b"refused"
        path = (path / last).resolve(strict=True)
    # A loop of links is a RuntimeError before Python 3.13.
    except (OSError, RuntimeError):
        return b"refused"
    if not path.is_relative_to(base):
        return b"refused"
    if path.is_dir():
        if last:
            return b"a directory"
        path /= "index.html"
        if not path.exists():
            return b"a listing"
    elif not last:
        return b"refused"
    return bytes(path)


@cache
def _tree() -> Files:
    """Return the files of a tree; a secret file is beside its root."""
    root = new_folder() / "root"
    (root / "d" / "e").mkdir(parents=True)
    (root.parent / "secret").write_bytes(SECRET)
    for name in ("a", ".hidden", "d/a", "d/index.html", "d/e/a"):
        (root / name).write_bytes(_PUBLIC)
    return Files(root)


def new_folder() -> Path:
    """Return a new folder, which is removed when the process ends."""
    folder = Path(mkdtemp(prefix="iobatch-fuzz-")).resolve()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
