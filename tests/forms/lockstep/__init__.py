"""Both forms of the hot path in lockstep: the same random operations on each.

The first side is the library as it is installed, the second is a copy of it in pure Python. After
each operation both must have returned or raised the same, made the same system calls with the same
bytes and flags, run the same hooks, and hold the same entries and counts. Five differences are
allowed:

- The compiled form has its twin deal with a short read and with the end of a file, and the twin
  reads again. So after a short read no pread is compared, and no sendfile that returned 0 is.
- A limit that ends within an entry: one form may join what the other sends by sendmsg, since in the
  pure form the part before the limit is a view.
- Bytes that were read: the compiled form reads them to where they are joined with others, and so it
  joins more of them.
- What pushes held back bytes at the end of a call: the twin and the compiled form may both do so.
  It is compared whether bytes are still held back.
- The exception of a signal handler that leaves a send makes the count unknown in the pure form, and
  leaves it exact in the compiled form. Then the bytes taken and left are compared, as one stream,
  and the episode ends. It also ends after the exception of a handler during a read, which the two
  forms may reach at different times.

In a pure installation the tests compare two pure sides, and test themselves.

Each episode has its number as its seed. A failure prints it, with the operations up to there.
"""
