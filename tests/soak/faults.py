"""Faults around a running server: few descriptors, a full disk, log rotation, killed workers."""

from __future__ import annotations

import os
import resource
from contextlib import suppress
from itertools import count
from signal import SIGHUP, SIGKILL
from time import monotonic
from typing import TYPE_CHECKING

from tests.support.httpd import children
from tests.support.sockets import PATIENCE
from tests.support.usage import descriptor_count

if TYPE_CHECKING:
    import subprocess
    from collections import Counter
    from pathlib import Path
    from random import Random

# A write to it fails with ENOSPC.
FULL_DISK = "/dev/full"


class Faults:
    """Causes faults, and ends those that last."""

    def __init__(
        self, process: subprocess.Popen[str], log: Path, random: Random, seen: Counter[str]
    ) -> None:
        self._process = process
        self._log = log
        self._random = random
        self._seen = seen
        self._number = count()
        self._limits = {
            kind: resource.prlimit(process.pid, kind)
            for kind in (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE)
        }
        # The first worker lives to the end, so that it is seen to be flat.
        self._spared = self.pids()[:2]

    def pids(self) -> list[int]:
        """Return the processes of the server: the first one, and its workers by age."""
        return [self._process.pid, *sorted(children(self._process.pid))]

    def cause(self) -> None:
        """Cause a fault, or end one."""
        self._random.choice(
            (
                self._take_descriptors,
                self._take_descriptors,
                self._fill_disk,
                self._limit_files,
                self._rotate,
                self._kill,
                self.end,
            )
        )()

    def end(self) -> None:
        """End all faults, and open a new log."""
        self.restore()
        self._rotate()

    def restore(self) -> None:
        """Restore all limits, first those that the next worker inherits."""
        for pid in (self._process.pid, *self.pids()):
            for kind, limits in self._limits.items():
                with suppress(ProcessLookupError):
                    resource.prlimit(pid, kind, limits)

    def _take_descriptors(self) -> None:
        """Leave a few descriptors to a process, or none: accept(2) and open(2) give EMFILE."""
        self._seen["few descriptors"] += 1
        with suppress(ProcessLookupError, FileNotFoundError):
            pid = self._random.choice(self.pids())
            most = descriptor_count(pid) + self._random.choice((-2, 0, 0, 1, 2, 5))
            _, hard = self._limits[resource.RLIMIT_NOFILE]
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (max(most, 1), hard))

    def _fill_disk(self) -> None:
        """Have the log lead to a full disk: write(2) gives ENOSPC."""
        self._seen["full disk"] += 1
        self._log.unlink(missing_ok=True)
        self._log.symlink_to(FULL_DISK)
        self._process.send_signal(SIGHUP)

    def _limit_files(self) -> None:
        """Let the log grow by a few bytes: write(2) is partial, and then gives EFBIG.

        Python ignores SIGXFSZ.
        """
        self._seen["log can't grow"] += 1
        with suppress(ProcessLookupError, FileNotFoundError):
            size = self._log.stat().st_size + self._random.randrange(300)
            for pid in self.pids():
                _, hard = self._limits[resource.RLIMIT_FSIZE]
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, hard))

    def _rotate(self) -> None:
        self._seen["log rotated"] += 1
        with suppress(FileNotFoundError):
            self._log.rename(self._log.with_suffix(f".{next(self._number) % 5}"))
        self._process.send_signal(SIGHUP)

    def _kill(self) -> None:
        """Kill a worker, except the first one, and wait until it is gone."""
        for pid in self.pids():
            if pid not in self._spared:
                self._seen["worker killed"] += 1
                os.kill(pid, SIGKILL)
                deadline = monotonic() + PATIENCE
                while pid in self.pids():
                    assert monotonic() < deadline, "the worker is still there"
                    os.sched_yield()
                return
