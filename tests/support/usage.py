"""What a process uses, as proc(5) shows it."""

from __future__ import annotations

from pathlib import Path


def resident_bytes(pid: int | str = "self", key: str = "VmRSS") -> int:
    """Return the resident size of a process; with the key VmHWM its peak."""
    return 1024 * int(_status(pid)[key].split()[0])


def thread_count(pid: int | str = "self") -> int:
    return int(_status(pid)["Threads"])


def descriptor_count(pid: int | str = "self") -> int:
    """Return the number of open descriptors; for this process, with the one that lists them."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def _status(pid: int | str) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":", 1) for line in lines)
