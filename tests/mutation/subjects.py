"""Which tests are about which module. One of them must fail with each mutant of the module."""

from __future__ import annotations

from typing import Final

_SENDING: Final = (
    *("batch", "send", "sendmsg", "sendall", "write"),
    *("test_departures.py", "test_errors.py", "models/test_cuts.py", "models/test_batch.py"),
    *(f"interruptions/test_{name}.py" for name in ("add_and_reset", "handler_actions")),
    *(f"interruptions/test_{name}.py" for name in ("send", "signals")),
)
_FILTERS: Final = (
    *("filters", "sendall/test_filters.py"),
    *("interruptions/test_filters.py", "interruptions/test_exhaustion.py"),
    *(f"aio/test_through_{name}.py" for name in ("filters", "filter_errors", "tls")),
)
_READ_AHEAD: Final = (
    *(f"aio/test_read_ahead{name}.py" for name in ("", "_ends", "_errors", "_fallbacks")),
    *("anyio/test_read_ahead.py", "test_page_cache.py", "interruptions/test_page_cache.py"),
)
_AIO: Final = (
    *("aio", "models/test_writer.py"),
    *(f"interruptions/test_{name}.py" for name in ("writer", "stream", "page_cache")),
)

# Paths in tests/.
SUBJECTS: Final[dict[str, tuple[str, ...]]] = {
    "_errors": (*_SENDING, "aio/test_completion.py"),
    "_arguments": (*_SENDING, "aio/test_arguments.py", "aio/test_timeouts.py"),
    "_files": (*_SENDING, "forms/test_file_version.py"),
    "_entries": _SENDING,
    "_core": _SENDING,
    "_batch": ("batch", "interruptions/test_add_and_reset.py"),
    "_pagecache": _READ_AHEAD,
    "_target": _SENDING,
    "_send": _SENDING,
    "_write": ("write", "interruptions/test_send.py", "interruptions/test_signals.py"),
    "_sendall": ("sendall",),
    "_tls": _FILTERS,
    "filters": _FILTERS,
    "aio._budget": _AIO,
    "aio._operation": _AIO,
    "aio._pipelines": _AIO,
    "aio._posted": _AIO,
    "aio._queue": _AIO,
    "aio._readahead": _AIO,
    "aio._sender": _AIO,
    "aio._stream": _AIO,
    "aio._watch": _AIO,
    "aio._writer": _AIO,
    "anyio": ("anyio",),
}


def is_about(nodeid: str, module: str) -> bool:
    """Return whether a test is about a module."""
    path = nodeid.partition("::")[0].removeprefix("tests/")
    return any(path == each or path.startswith(f"{each}/") for each in SUBJECTS[module])
