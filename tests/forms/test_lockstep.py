"""The compiled form does what its twin in Python does."""

from __future__ import annotations

from tests.forms.lockstep.episodes import run_real, run_scripted


def test_both_forms_do_the_same_over_scripted_system_calls() -> None:
    """`python -m tests.forms.lockstep 1000000` runs more steps."""
    done, _ = run_scripted(10_000)
    assert done >= 10_000


def test_both_forms_do_the_same_over_real_sockets() -> None:
    """Their buffers are small."""
    done, _ = run_real(3000)
    assert done >= 3000
