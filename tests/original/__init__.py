"""libowfat's own iob functions as the oracle: the same batches, and the departures from them.

    python -m tests.original [BATCHES [FIRST]]

plays random batches with libowfat and with both forms of iobatch, over the same kinds of sockets.
All must send the same bytes, and end with the same code and the same number of bytes left.
libowfat may differ in the ways that the table in iobatch-libowfat(7) names, and the program counts
these cases. A batch has its number as its seed, and FIRST is the first number.

- libraries: libowfat by ctypes, and iobatch, under one interface.
- worker: each batch in a process of its own, so that a crash and a hang are results.
- plans: random batches and what happens to them.
- play: plays a plan with a library over real sockets.
- compare: which results must be equal, and which departure explains a difference.
- batches: plays and compares.
- rows: what is observed for each row of the table; test_rows has the results for each library.
"""
