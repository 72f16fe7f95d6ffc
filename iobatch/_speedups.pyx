"""The hot path, compiled."""

cdef extern from *:
    # The build defines it as the hash of this file; iobatch/_forms.py compares the two.
    unsigned long long IOBATCH_SOURCE_HASH

SOURCE_HASH = IOBATCH_SOURCE_HASH
