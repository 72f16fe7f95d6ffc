"""A pytest plugin that runs the tests of each mutant in a child process.

Everything is imported and collected once. The plugin runs each test without a mutant first, and
records its duration and the lines of the library that it runs. A child process replaces the code
of one function by that of the mutant, and runs the tests that run the changed statement, the
quickest first, until one fails.
"""

from __future__ import annotations

import gc
import os
import resource
import select
import signal
import sys
from collections import defaultdict
from contextlib import suppress
from importlib.machinery import SourceFileLoader
from pathlib import Path
from time import monotonic
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Final, NoReturn

import pytest
from coverage import Coverage

from tests.mutation.mutants import path_of
from tests.mutation.subjects import SUBJECTS, is_about

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.mutation.mutants import Mutant

# A test that takes this number of seconds more than without a mutant hangs or spins.
_TIMEOUT: Final = 10
# Memory that a mutant may take in addition, in bytes.
_MEMORY: Final = 1 << 30

# Some tests run no line of the library, and some set a trace function.
_WARNINGS: Final = ["no-data-collected", "trace-changed", "module-not-measured"]


class Runner:
    """Runs the tests, and calls a function that can run them for each mutant."""

    def __init__(self, use: Callable[[Runner], None]) -> None:
        """Make a plugin that calls `use` when it knows which test runs which lines."""
        self._use = use
        # The report of the setup, call or teardown that has failed.
        self._failure: str | None = None
        self._items: list[pytest.Item] = []
        self._durations: dict[pytest.Item, float] = {}
        # The tests that run a line of a module.
        self._tests: dict[tuple[str, int], set[pytest.Item]] = defaultdict(set)
        # The tests whose lines can't be recorded, as they set a trace function.
        self._untraced: set[pytest.Item] = set()
        self._functions: dict[tuple[str, str, int], list[FunctionType]] = defaultdict(list)

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_finish(self) -> None:
        """Find the functions of the library, before conftest.py hides them from gc."""
        for each in gc.get_objects():
            if type(each) is FunctionType:
                code = each.__code__
                key = (code.co_filename, code.co_qualname, code.co_firstlineno)
                self._functions[key].append(each)

    @pytest.hookimpl
    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Stop if a module can't be collected."""
        if report.failed:
            _stop(f"{report.nodeid} can't be collected:\n{report.longreprtext}")

    @pytest.hookimpl
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Record that the setup, call or teardown of a test has failed."""
        if report.failed:
            self._failure = report.longreprtext

    @pytest.hookimpl
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Run the tests once, and then those of the mutants."""
        self._items = session.items
        paths = {str(path_of(module)): module for module in SUBJECTS}
        for item in self._items:
            coverage = Coverage(data_file=None, config_file=False, include=list(paths))
            coverage.set_option("run:disable_warnings", _WARNINGS)
            with coverage.collect():
                tracer = sys.gettrace()
                recorded = self._passes(item) and sys.gettrace() is tracer
            data = coverage.get_data()
            for path in data.measured_files() if recorded else ():
                for line in data.lines(path) or ():
                    self._tests[paths[path], line].add(item)
            if not recorded:
                if not self._passes(item):
                    _stop(f"a test fails without a mutant: {item.nodeid}\n{self._failure}")
                self._untraced.add(item)
        failed = self._run(None, self._items)
        if failed is not None:
            _stop(f"a test fails in a child process without a mutant: {failed}")
        self._use(self)
        return True

    def _passes(self, item: pytest.Item) -> bool:
        """Run a test and record its duration; return whether it passes."""
        start = monotonic()
        self._failure = None
        item.ihook.pytest_runtest_protocol(item=item, nextitem=None)
        self._durations[item] = monotonic() - start
        return self._failure is None

    def killer(self, mutant: Mutant) -> str | None:
        """Return the test that fails with a mutant; None if it survives."""
        for items in self._rounds(mutant):
            killer = self._run(mutant, items)
            if killer is not None:
                return killer
        return None

    def _rounds(self, mutant: Mutant) -> Iterator[list[pytest.Item]]:
        """Yield the tests for a mutant: one parametrization of each test first, then the others."""
        tests = self._untraced.union(*(self._tests[mutant.module, line] for line in mutant.lines))
        about = [item for item in tests if is_about(item.nodeid, mutant.module)]
        ordered = sorted(about, key=self._durations.__getitem__)
        first: dict[str, pytest.Item] = {}
        for item in ordered:
            first.setdefault(item.nodeid.partition("[")[0], item)
        yield list(first.values())
        yield [item for item in ordered if item not in first.values()]

    def _run(self, mutant: Mutant | None, items: list[pytest.Item]) -> str | None:
        """Return the first of some tests that fails with a mutant; None if all pass."""
        read_end, write_end = os.pipe()
        pid = os.fork()
        if not pid:
            try:
                os.setpgid(0, 0)
                os.close(read_end)
                self._run_in_child(mutant, items, write_end)
            finally:
                os._exit(1)
        os.close(write_end)
        ran = 0
        for item in items:
            seconds = _TIMEOUT + 10 * self._durations[item]
            ready, _, _ = select.select([read_end], [], [], seconds)
            if not ready or os.read(read_end, 1) != b".":
                break
            ran += 1
        os.close(read_end)
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return items[ran].nodeid if ran < len(items) else None

    def _run_in_child(
        self, mutant: Mutant | None, items: list[pytest.Item], report_to: int
    ) -> None:
        """Run tests with a mutant, and write a byte for each that passes."""
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + _MEMORY, size + _MEMORY))
        if mutant is not None:
            self._install(mutant)
        for item in items:
            if not self._passes(item):
                return
            os.write(report_to, b".")

    def _install(self, mutant: Mutant) -> None:
        """Replace the code of the function that has the change."""
        path = str(path_of(mutant.module))
        changed = compile(mutant.source, path, "exec")
        key = (path, *mutant.function)
        [code] = [
            each for each in _codes(changed) if (path, each.co_qualname, each.co_firstlineno) == key
        ]
        for function in self._functions[key]:
            function.__code__ = code
        # Some tests import a second copy of the library.
        get_code = SourceFileLoader.get_code

        def get_changed_code(loader: SourceFileLoader, name: str) -> CodeType | None:
            return changed if loader.path == path else get_code(loader, name)

        SourceFileLoader.get_code = get_changed_code


def _stop(reason: str) -> NoReturn:
    """End the run. pytest doesn't print the reason: its terminal plugin is off."""
    print(reason, file=sys.stderr)
    pytest.exit(reason)


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if type(constant) is CodeType:
            yield from _codes(constant)


def run_tests(modules: list[str], use: Callable[[Runner], None]) -> None:
    """Collect the tests of some modules, and call `use` with a Runner that can run them."""
    paths = dict.fromkeys(f"tests/{path}" for module in modules for path in SUBJECTS[module])
    # The runner has a timeout of its own.
    options = ["-o", "addopts=", "-p", "no:terminal", "-p", "no:cacheprovider", "-o", "timeout=0"]
    pytest.main([*options, *paths], plugins=[Runner(use)])
