"""TruncatedFileError: its attributes, pickle and copy."""

from __future__ import annotations

import copy
import pickle

from iobatch import TruncatedFileError


def test_truncated_file_error_names_the_descriptor_offset_and_missing_bytes() -> None:
    error = TruncatedFileError(7, 1000, 24)
    assert isinstance(error, OSError)
    assert (error.fd, error.offset, error.missing) == (7, 1000, 24)
    assert error.errno
    assert "7" in str(error)
    assert "1000" in str(error)
    assert "24" in str(error)


def test_truncated_file_error_survives_pickle_and_copy() -> None:
    for error in (
        pickle.loads(pickle.dumps(TruncatedFileError(7, 1000, 24))),
        copy.copy(TruncatedFileError(7, 1000, 24)),
    ):
        assert (error.fd, error.offset, error.missing) == (7, 1000, 24)
        assert str(error) == str(TruncatedFileError(7, 1000, 24))
