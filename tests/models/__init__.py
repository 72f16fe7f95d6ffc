"""State machines: random calls of the library, each checked against plain bytes.

Hypothesis draws the calls, runs them, and shortens a sequence that fails to the calls that matter.
A machine keeps what the library should hold as bytes and lists, and never asks the library for it.
After each call it compares all that is public with this: counts, codes, errors, hooks in their
order, closed descriptors, and the bytes that have arrived.

`HYPOTHESIS_PROFILE=nightly python -m pytest tests/models` runs many more examples, other ones each
time, and prints for a failure the @reproduce_failure that repeats it, as a decorator of the
machine's class. It prints how often each rule and outcome was reached, and fails if one never was.
"""
