"""Run one target under atheris: `python -m tests.fuzz.engine TARGET [libFuzzer's arguments]`."""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["iobatch", "tests.fuzz"]):
    from tests.fuzz.targets import run


def main() -> None:
    name = sys.argv.pop(1)
    unraisable: list[BaseException | None] = []
    sys.unraisablehook = lambda args: unraisable.append(args.exc_value)

    def test(data: bytes) -> None:
        run(name, data)
        assert not unraisable, unraisable

    # To minimize, libFuzzer gives this command to the shell.
    command = f"{sys.executable} -W error -m tests.fuzz.engine {name}"
    atheris.Setup([command, *sys.argv[1:]], test)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
