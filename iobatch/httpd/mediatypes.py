"""Media types, by the suffixes of files' names: the same on every machine."""

from __future__ import annotations

# What a site consists of, and what it offers for download. The types are those of IANA's registry,
# except some in common use that it lacks. Source code is shown as text.
_SUFFIXES = {
    "application/atom+xml": "atom",
    "application/epub+zip": "epub",
    "application/geo+json": "geojson",
    "application/gzip": "gz tgz",
    "application/java-archive": "jar",
    "application/json": "json map",
    "application/ld+json": "jsonld",
    "application/manifest+json": "webmanifest",
    "application/msword": "doc",
    "application/ogg": "ogx",
    "application/pdf": "pdf",
    "application/pgp-signature": "asc sig",
    "application/postscript": "ps eps ai",
    "application/rss+xml": "rss",
    "application/rtf": "rtf",
    "application/toml": "toml",
    "application/vnd.android.package-archive": "apk",
    "application/vnd.apple.mpegurl": "m3u8",
    "application/vnd.debian.binary-package": "deb",
    "application/vnd.google-earth.kml+xml": "kml",
    "application/vnd.google-earth.kmz": "kmz",
    "application/vnd.ms-excel": "xls",
    "application/vnd.ms-fontobject": "eot",
    "application/vnd.ms-powerpoint": "ppt",
    "application/vnd.oasis.opendocument.graphics": "odg",
    "application/vnd.oasis.opendocument.presentation": "odp",
    "application/vnd.oasis.opendocument.spreadsheet": "ods",
    "application/vnd.oasis.opendocument.text": "odt",
    "application/vnd.openxmlformats-officedocument.presentationml.presentation": "pptx",
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet": "xlsx",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": "docx",
    "application/vnd.rar": "rar",
    "application/vnd.sqlite3": "sqlite sqlite3",
    "application/wasm": "wasm",
    "application/x-7z-compressed": "7z",
    "application/x-brotli": "br",
    "application/x-bzip2": "bz2 tbz2",
    "application/x-compress": "z",
    "application/x-tar": "tar",
    "application/x-xz": "xz txz",
    "application/xhtml+xml": "xhtml xht",
    "application/xml": "xml xsd rng",
    "application/xml-dtd": "dtd",
    "application/xslt+xml": "xsl xslt",
    "application/yaml": "yaml yml",
    "application/zip": "zip",
    "application/zstd": "zst",
    "audio/aac": "aac",
    "audio/flac": "flac",
    "audio/matroska": "mka",
    "audio/midi": "mid midi",
    "audio/mp4": "m4a m4b",
    "audio/mpeg": "mp3 mp2 mpga",
    "audio/mpegurl": "m3u",
    "audio/ogg": "ogg oga opus spx",
    "audio/wav": "wav",
    "audio/webm": "weba",
    "audio/x-aiff": "aif aiff",
    "font/collection": "ttc",
    "font/otf": "otf",
    "font/ttf": "ttf",
    "font/woff": "woff",
    "font/woff2": "woff2",
    "image/apng": "apng",
    "image/avif": "avif",
    "image/bmp": "bmp",
    "image/gif": "gif",
    "image/heic": "heic",
    "image/heif": "heif",
    "image/jp2": "jp2",
    "image/jpeg": "jpg jpeg jpe jfif",
    "image/jxl": "jxl",
    "image/png": "png",
    "image/svg+xml": "svg svgz",
    "image/tiff": "tif tiff",
    "image/vnd.adobe.photoshop": "psd",
    "image/vnd.microsoft.icon": "ico",
    "image/webp": "webp",
    "message/rfc822": "eml",
    "model/gltf+json": "gltf",
    "model/gltf-binary": "glb",
    "model/obj": "obj",
    "model/stl": "stl",
    "text/calendar": "ics ifb",
    "text/css": "css",
    "text/csv": "csv",
    "text/html": "html htm",
    "text/javascript": "js mjs",
    "text/markdown": "md markdown",
    "text/plain": "txt text log conf cfg ini diff patch asm bat c cc cpp go h hpp java ksh pl pm "
    "py rb rs sh sha256 srt",
    "text/tab-separated-values": "tsv",
    "text/vcard": "vcf",
    "text/vtt": "vtt",
    "video/3gpp": "3gp",
    "video/3gpp2": "3g2",
    "video/matroska": "mkv mk3d",
    "video/mp2t": "ts m2ts",
    "video/mp4": "mp4 m4v mpg4",
    "video/mpeg": "mpg mpeg mpe m1v",
    "video/ogg": "ogv",
    "video/quicktime": "mov qt",
    "video/vnd.avi": "avi",
    "video/webm": "webm",
}
_TYPE_OF_SUFFIX = {
    suffix.encode(): media_type
    for media_type, suffixes in _SUFFIXES.items()
    for suffix in suffixes.split()
}


def content_type(name: bytes) -> str:
    """Return the Content-Type for a file's name.

    A compressed file is the archive that it is: with the type and a coding of its content, clients
    would unpack it.
    """
    _, dot, suffix = name.rpartition(b".")
    media_type = _TYPE_OF_SUFFIX.get(suffix.lower() if dot else b"", "application/octet-stream")
    # Other types have a fixed encoding, or declare it as XML does.
    return f"{media_type}; charset=utf-8" if media_type.startswith("text/") else media_type


def content_coding(name: bytes) -> str:
    """Return the content coding of a file's bytes, which its name implies; "": none.

    Only SVG has a suffix for its compressed form (SVG 2, appendix "Media type registration").
    """
    return "gzip" if name.lower().endswith(b".svgz") else ""
