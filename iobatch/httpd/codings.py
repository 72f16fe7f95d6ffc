"""Content codings (RFC 9110 8.4): which one a client prefers, and its compressor."""

from __future__ import annotations

import sys
import zlib
from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from iobatch.httpd.weights import weights

if TYPE_CHECKING:
    from collections.abc import Callable

    from iobatch.filters import Transform

# In bytes: a smaller body fits into one packet, coded or not.
MIN_CODED = 1024
# Low levels: the client waits while the compressor works.
GZIP_LEVEL = 4
ISAL_LEVEL = 3
# Each response has its own window and tables: 0.7 MiB with these, 1.3 by default, for 1 % more
# bytes.
ZSTD_OPTIONS = {"compression_level": 3, "window_log": 17, "hash_log": 15, "chain_log": 14}

# Besides text, XML and JSON. No type of an archive is among them: beside `backup.tar`, the file
# `backup.tar.gz` may have any content.
_COMPRESSIBLE = {
    "application/json",
    "application/postscript",
    "application/rtf",
    "application/toml",
    "application/vnd.apple.mpegurl",
    "application/vnd.ms-fontobject",
    "application/wasm",
    "application/xml",
    "application/xml-dtd",
    "application/yaml",
    "audio/mpegurl",
    "font/collection",
    "font/otf",
    "font/ttf",
    "image/bmp",
    "image/vnd.microsoft.icon",
    "message/rfc822",
    "model/obj",
}


def compressible(content_type: str) -> bool:
    """Return whether bodies of a Content-Type usually shrink."""
    media_type = content_type.partition(";")[0]
    return (
        media_type.startswith("text/")
        or media_type.endswith(("+json", "+xml"))
        or (media_type in _COMPRESSIBLE)
    )


def _optional(name: str) -> Any:
    """Import a module; return None if it is not installed."""
    try:
        return import_module(name)
    except ImportError:
        return None


# Both have the same interface.
_zstd = _optional("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")
# It has zlib's interface, and takes a quarter of its CPU time, for 7 % more bytes.
_isal = _optional("isal.isal_zlib")


def _zstd_transform() -> Transform:
    parameter = _zstd.CompressionParameter
    options = {parameter[name]: value for name, value in ZSTD_OPTIONS.items()}
    compressor: Transform = _zstd.ZstdCompressor(options=options)
    return compressor


def _gzip_transform() -> Transform:
    if _isal is None:
        return zlib.compressobj(GZIP_LEVEL, wbits=31)
    compressor: Transform = _isal.compressobj(ISAL_LEVEL, wbits=31)
    return compressor


# The codings that can be made on the fly, the preferred first, each with its compressor.
CODINGS: dict[str, Callable[[], Transform]] = {}
if _zstd is not None:
    CODINGS["zstd"] = _zstd_transform
CODINGS["gzip"] = _gzip_transform
AVAILABLE = tuple(CODINGS)


@lru_cache(maxsize=64)
def choose(accept: bytes, available: tuple[str, ...]) -> str:
    """Return the available coding that a client prefers; "": identity.

    Args:
        accept: the Accept-Encoding field of the request.
        available: codings, the server's preferred first.

    """
    found = weights(accept)
    if "x-gzip" in found:  # RFC 9110 8.4.1.3
        found["gzip"] = max(found["x-gzip"], found.get("gzip", 0.0))
    other = found.get("*", 0.0)
    best, greatest = "", found.get("identity", 0.0)
    for coding in available:
        weight = found.get(coding, other)
        if weight > greatest or (weight == greatest > 0 and not best):
            best, greatest = coding, weight
    return best


def accepts_identity(accept: bytes) -> bool:
    """Return whether an Accept-Encoding field allows content without a coding (RFC 9110 12.5.3)."""
    found = weights(accept)
    return found.get("identity", found.get("*", 1.0)) > 0
