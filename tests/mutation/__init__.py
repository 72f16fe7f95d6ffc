"""Mutation testing: a changed line of the library must fail a test. See `__main__`."""
