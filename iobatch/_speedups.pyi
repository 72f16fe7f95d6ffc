# For type checkers: the compiled module need not exist.

SOURCE_HASH: int

def claim() -> bool: ...
