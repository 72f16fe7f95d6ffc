# cython: language_level=3, binding=True, embedsignature=False, wraparound=False, auto_pickle=False, nonecheck=True
"""The hot path, compiled: adding, staging, sending and accounting of plain entries.

Each function and method here has a twin in Python, which is the description of what it does. It
handles the plain case and calls its twin for every other, before it has changed anything, or after
it has accounted for what it has done. _forms.py puts the functions in the place of their twins.

No signal handler runs from the start of a system call to the end of its accounting, so the counts
are exact whatever a handler raises. Handlers run before each system call. Finalizers may run
wherever memory is allocated or a reference is dropped. They, and another thread while the GIL is
released, may append to the batch, but `activity` keeps them from sending or emptying it. So an
index into the queue is used only until the next such point, and a pointer into a buffer only while
this module holds a reference to the bytes object, or an export of the view.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytearray cimport PyByteArray_AS_STRING
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals, PyErr_SetObject
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.errno cimport EAGAIN, EINTR, EINVAL, ENOSYS, EOPNOTSUPP, EOVERFLOW, errno
from libc.string cimport memcpy, memset
from posix.types cimport off_t

import _socket
import os
import signal
import socket
from selectors import EVENT_WRITE

cdef extern from *:
    # The build defines it as the hash of this file; iobatch/_forms.py compares the two.
    unsigned long long IOBATCH_SOURCE_HASH

cdef extern from "<errno.h>" nogil:
    int EWOULDBLOCK

cdef extern from "<sys/uio.h>" nogil:
    cdef struct iovec:
        void *iov_base
        size_t iov_len

cdef extern from "<sys/socket.h>" nogil:
    cdef struct msghdr:
        void *msg_name
        iovec *msg_iov
        size_t msg_iovlen
    ssize_t c_send "send"(int, const void *, size_t, int)
    ssize_t c_sendmsg "sendmsg"(int, const msghdr *, int)
    int MSG_NOSIGNAL
    int MSG_MORE

cdef extern from "<sys/sendfile.h>" nogil:
    ssize_t c_sendfile "sendfile"(int, int, off_t *, size_t)

cdef extern from "<unistd.h>" nogil:
    ssize_t c_pread "pread"(int, void *, size_t, off_t)

cdef extern from "<sys/stat.h>" nogil:
    cdef struct timespec:
        long long tv_sec
        long tv_nsec
    cdef struct file_status "stat":
        off_t st_size
        timespec st_mtim
        timespec st_ctim
    int c_fstat "fstat"(int, file_status *)

cdef extern from * nogil:
    """
    /* pread, but only of what is in the page cache: EAGAIN if nothing is. */
    static ssize_t pread_cached(int fd, void *buffer, size_t count, off_t offset)
    {
    #ifdef RWF_NOWAIT
        struct iovec piece = {buffer, count};
        return preadv2(fd, &piece, 1, offset, RWF_NOWAIT);
    #else
        errno = ENOSYS;
        return -1;
    #endif
    }
    """
    ssize_t c_pread_cached "pread_cached"(int, void *, size_t, off_t)

SOURCE_HASH = IOBATCH_SOURCE_HASH

cdef enum:  # the activities of _core.py
    IDLE = 0
    SENDING = 1

cdef enum:  # the states of aio/_sender.py
    EMPTY = 0
    BUSY = 1

cdef enum:  # what the functions that send return instead of a number of bytes
    AGAIN = -1
    FAILED = -3
    UNUSUAL = -5000  # not done, and nothing was sent: Python code does it
    RAISED = -9999

cdef enum:
    # The most buffers of one sendmsg(2), IOV_MAX.
    MOST_BUFFERS = 1024
    # The most views in one call whose exports are on the stack: each is a Py_buffer.
    FEW_VIEWS = 16
    # Buffers up to this total are joined on the stack.
    STACK_LIMIT = 16384
    # Slots that an empty queue keeps for its next entries.
    FEW_SLOTS = 16

cdef long long MAX_BYTES = 0x7FFFFFFFFFFFFFFF
cdef long long MAX_CALL_BYTES = 0x7FFFF000

cdef extern from "Python.h":
    Py_ssize_t PY_SSIZE_T_MAX
    PyObject *PyObject_CallOneArg(object, object)
    void PyErr_WriteUnraisable(object)
    # Unlike an assignment to a slice of a list, it makes no object: the garbage collector can't run
    # finalizers between the reading of an index and its use.
    int PyList_SetSlice(list, Py_ssize_t, Py_ssize_t, PyObject *) except -1
    ctypedef struct PyTypeObject:
        PyObject *(*tp_iternext)(object) noexcept

# The system calls go through this table, so that tests can script them.
cdef struct Calls:
    ssize_t (*send)(int, const void *, size_t, int) noexcept nogil
    ssize_t (*sendmsg)(int, const msghdr *, int) noexcept nogil
    ssize_t (*sendfile)(int, int, off_t *, size_t) noexcept nogil
    ssize_t (*pread)(int, void *, size_t, off_t) noexcept nogil
    ssize_t (*pread_cached)(int, void *, size_t, off_t) noexcept nogil

cdef Calls calls
calls.send = c_send
calls.sendmsg = c_sendmsg
calls.sendfile = c_sendfile
calls.pread = c_pread
calls.pread_cached = c_pread_cached

cdef object _UNSET = object()
# The class whose sockets need no Python code; None if socket.socket has methods of its own, as after
# gevent.monkey.patch_all().
cdef object socket_class = socket.socket
for _name in ("send", "sendmsg", "fileno", "gettimeout"):
    if getattr(socket.socket, _name) is not getattr(_socket.socket, _name):
        socket_class = None
cdef object socket_fileno = _socket.socket.fileno
cdef object socket_gettimeout = _socket.socket.gettimeout
cdef object scripted_class = None  # set by script_socket()
cdef int SIGPIPE = signal.SIGPIPE
cdef int SIG_IGN = signal.SIG_IGN

# Set by the functions at the end, named connect_...
cdef object core_class, batch_class, operation_class
cdef object twin_addbuf, twin_addbufs, twin_addfile, twin_reset, twin_del, twin_write, twin_await
cdef object twin_iob_send, twin_iob_write, twin_file_version, count_unknown
cdef dict send_names, write_names  # the names of _send.py and _write.py
cdef long long SEND_LIMIT, WRITE_LIMIT, COPY_LIMIT, STAGE_LIMIT
cdef long long JOIN_LIMIT, JOIN_MEAN_LIMIT, JOIN_CACHED_LIMIT, JOIN_OFFER_LIMIT
cdef long long MAX_PROBED_ENTRIES, SINGLE_PROBE_LIMIT, PROBE_STRIDE


@cython.binding(False)  # so that a method checks the type of `self`
@cython.final
@cython.no_gc_clear
cdef class EntryQueue:
    """The entries of a batch, in order: the part of collections.deque that a core uses."""

    # The entries are in the slots from head to tail; the other slots hold None. It is always the
    # same list.
    cdef list slots
    cdef Py_ssize_t head, tail

    def __cinit__(self):
        self.slots = []

    cdef int push(self, object entry) except -1:
        if self.tail < len(self.slots):
            self.slots[self.tail] = entry
        else:
            if self.head > 64 and self.head > self.tail // 2:
                PyList_SetSlice(self.slots, 0, self.head, NULL)
                self.tail -= self.head
                self.head = 0
            self.slots.append(entry)
        self.tail += 1
        return 0

    cdef object pop(self):
        """Remove the first entry and return it: it is the caller who drops it."""
        cdef object entry = self.slots[self.head]
        self.slots[self.head] = None
        self.head += 1
        if self.head >= self.tail:
            self.empty()
        return entry

    cdef int empty(self) except -1:
        self.head = self.tail = 0
        if len(self.slots) > FEW_SLOTS:
            try:
                PyList_SetSlice(self.slots, FEW_SLOTS, PY_SSIZE_T_MAX, NULL)
            except MemoryError:
                pass  # the slots, which hold None, stay
        return 0

    cdef Py_ssize_t slot(self, Py_ssize_t index) except -1:
        if not 0 <= index < self.tail - self.head:
            raise IndexError("the queue has no such entry")
        return self.head + index

    def __len__(self):
        return self.tail - self.head

    def __iter__(self):
        cdef list entries = None
        cdef Py_ssize_t size = -1, index
        # A finalizer may change the queue where memory is allocated: then the next turn repeats it.
        while size != self.tail - self.head:
            size = self.tail - self.head
            entries = [None] * size
        for index in range(size):
            entries[index] = self.slots[self.head + index]
        return iter(entries)

    def __getitem__(self, Py_ssize_t index):
        return self.slots[self.slot(index)]

    def __setitem__(self, Py_ssize_t index, entry):
        self.slots[self.slot(index)] = entry

    def __delitem__(self, Py_ssize_t index):
        cdef object entry = None
        index = self.slot(index)
        if index == self.head:
            entry = self.pop()
        else:
            self.tail -= 1
            entry = self.slots.pop(index)

    def append(self, entry):
        self.push(entry)

    def popleft(self):
        if self.head == self.tail:
            raise IndexError("the queue is empty")
        return self.pop()

    def insert(self, Py_ssize_t index, entry):
        self.slots.insert(self.head + index, entry)
        self.tail += 1

    def extend(self, entries):
        cdef list added = list(entries)
        PyList_SetSlice(self.slots, self.tail, PY_SSIZE_T_MAX, <PyObject *>added)
        self.tail += len(added)

    def extendleft(self, entries):
        cdef list added = list(entries)
        added.reverse()
        PyList_SetSlice(self.slots, self.head, self.head, <PyObject *>added)
        self.tail += len(added)

    cpdef clear(self):
        cdef Py_ssize_t head = self.head, tail = self.tail
        self.head = self.tail = 0
        try:
            # The list has changed before the entries are dropped: finalizers find an empty queue.
            PyList_SetSlice(self.slots, 0, tail, NULL)
        except MemoryError:
            self.head, self.tail = head, tail
            raise


@cython.no_gc_clear
cdef class CoreState:
    """The fields of a BatchCore; _core.py describes them."""

    cdef public long long left, sent, pinned, _to_remove
    cdef public Py_ssize_t ranges, releasable
    cdef public int activity
    cdef public bint release_pending
    cdef public object error, wants
    cdef public EntryQueue queue, _due_releases

    def __cinit__(self):
        self.wants = EVENT_WRITE
        self.queue = EntryQueue.__new__(EntryQueue)
        self._due_releases = EntryQueue.__new__(EntryQueue)


@cython.no_gc_clear
cdef class IOBatchBase:
    """The fields of an IOBatch, and its methods that have a slot in the type."""

    cdef readonly CoreState _core

    def __cinit__(self):
        self._core = core_class()

    def __bool__(self):
        return self._core.left > 0

    def __del__(self):
        cdef PyObject *result
        if self._core.left or self._core.release_pending:
            # Cython would print an exception, and exit for a SystemExit.
            result = PyObject_CallOneArg(twin_del, self)
            if result is NULL:
                PyErr_WriteUnraisable(twin_del)
            else:
                Py_DECREF(<object>result)


class IOBatch:
    """The other methods of an IOBatch, and the getters of its properties.

    They are functions, which check the type of `self`: a method of a compiled class does not, so
    IOBatch.addbuf(1, b"") would crash.
    """

    def __init__(IOBatchBase self not None):
        pass

    def bytesleft(IOBatchBase self not None):
        return self._core.left

    def bytessent(IOBatchBase self not None):
        return self._core.sent

    def addbuf(IOBatchBase self not None, data, *, on_release=None):
        cdef CoreState core = self._core
        cdef Py_ssize_t size
        if type(data) is bytes and on_release is None:
            size = PyBytes_GET_SIZE(data)
            if size <= MAX_BYTES - core.left:
                if size:
                    core.queue.push(data)
                    core.left += size
                return None
        return twin_addbuf(self, data, on_release=on_release)

    def reset(IOBatchBase self not None):
        cdef CoreState core = self._core
        if core.activity or core.release_pending or core.releasable:
            return twin_reset(self)
        core.left = core.sent = core.pinned = core.ranges = 0
        core.error = None
        core.wants = EVENT_WRITE
        core.queue.clear()

    def addbufs(IOBatchBase self not None, buffers):
        cdef CoreState core = self._core
        cdef EntryQueue queue = core.queue
        cdef list slots = queue.slots
        cdef Py_ssize_t index, end
        cdef long long size = 0
        if type(buffers) is list or type(buffers) is tuple:
            # No other code runs from here to the end of the accounting.
            PyList_SetSlice(slots, queue.tail, PY_SSIZE_T_MAX, <PyObject *>buffers)
            end = len(slots)
            for index in range(queue.tail, end):
                data = slots[index]
                if type(data) is not bytes or not PyBytes_GET_SIZE(data):
                    break
                size += PyBytes_GET_SIZE(data)
            else:
                if size <= MAX_BYTES - core.left:
                    queue.tail = end
                    core.left += size
                    return None
            PyList_SetSlice(slots, queue.tail, PY_SSIZE_T_MAX, NULL)
        return twin_addbufs(self, buffers)

    def addfile(IOBatchBase self not None, file, offset=0, count=None, *, on_release=None):
        cdef CoreState core = self._core
        cdef long long fd, start, size
        if type(file) is int and type(offset) is int and type(count) is int and on_release is None:
            try:
                fd, start, size = file, offset, count
            except OverflowError:
                fd = -1
            if (
                0 <= fd <= 0x7FFFFFFF and start >= 0 and size > 0
                and size <= MAX_BYTES - core.left and start <= MAX_BYTES - core.left - size
            ):
                core.queue.push((file, offset, count, None, False))
                core.ranges += 1
                core.left += size
                return None
        return twin_addfile(self, file, offset, count, on_release=on_release)


cdef int consume(CoreState core, long long nbytes) except -1:
    """Do what BatchCore.consume does. Only its last step, for views and hooks, is in Python."""
    cdef EntryQueue queue = core.queue
    cdef object entry
    cdef long long size
    cdef Py_ssize_t count
    core.left -= nbytes
    core.sent += nbytes
    core.pinned = 0
    if core.releasable:
        core._to_remove += nbytes
        core.release_pending = True
        core.release_entries(SENDING)
        return 0
    if not core.left:
        core.ranges = 0
        count = queue.tail - queue.head
        if count > FEW_SLOTS:
            queue.clear()
            return 0
        for _ in range(count):  # a finalizer may add entries, which stay
            queue.pop()
        return 0
    try:
        while nbytes > 0 and queue.head < queue.tail:
            entry = queue.slots[queue.head]
            if type(entry) is bytes:
                size = PyBytes_GET_SIZE(entry)
                if size > nbytes:
                    queue.slots[queue.head] = memoryview(entry)[nbytes:]
                    core.releasable += 1
                    break
            else:
                fd, offset, length, file, refused = entry
                size = length
                if size > nbytes:
                    queue.slots[queue.head] = (fd, offset + nbytes, length - nbytes, file, refused)
                    break
                core.ranges -= 1
            nbytes -= size
            queue.pop()
    except MemoryError:
        core._to_remove += nbytes  # the next call goes on
        core.release_pending = True
        raise
    return 0


cdef struct Stage:
    # The buffers of one system call.
    int buffers  # their number
    int entries  # the number of entries that they are made of, the Releases between them included
    int ranges  # the number of ranges to read among them
    int views
    long long size  # their total length in bytes
    long long copied  # the length of those that are bytes already, and are copied to join them


cdef int measure(CoreState core, long long most, Stage *stage) except -1:
    """Find the entries at the head for one system call, as BatchCore.stage does; read nothing."""
    cdef EntryQueue queue = core.queue
    cdef object entry
    cdef long long count, want, read_limit = min(most, STAGE_LIMIT)
    cdef Py_ssize_t index, end = queue.tail
    # All of a short batch of bytes is joined, however many they are.
    cdef bint joins_all = not (core.ranges or core.releasable) and core.left <= min(JOIN_LIMIT, most)
    stage.buffers = stage.entries = stage.ranges = stage.views = 0
    stage.size = stage.copied = 0
    if end - queue.head > MOST_BUFFERS and not joins_all:
        end = queue.head + MOST_BUFFERS
    for index in range(queue.head, end):
        entry = queue.slots[index]
        if type(entry) is bytes:
            stage.size += PyBytes_GET_SIZE(entry)
            stage.copied += PyBytes_GET_SIZE(entry)
            stage.buffers += 1
        elif type(entry) is tuple:
            count = (<tuple>entry)[2]
            if count > COPY_LIMIT and not (<tuple>entry)[4]:
                break
            want = read_limit - stage.size
            if want <= 0:
                break
            stage.buffers += 1
            stage.ranges += 1
            if count > want:
                stage.size += want
                stage.entries += 1
                break
            stage.size += count
        elif type(entry) is memoryview:
            stage.size += len(entry)
            stage.buffers += 1
            stage.views += 1
        stage.entries += 1
        if stage.size >= most:
            stage.size = most
            break
    return 0


cdef long long read_range(tuple entry, char *buffer, long long count, bint cached) except RAISED:
    """Read the first `count` bytes of a range; return how many bytes were read, or -errno.

    With `cached`, only what is in the page cache is read.
    """
    cdef int fd = entry[0]
    cdef off_t offset = entry[1]
    cdef ssize_t nbytes
    cdef int number = 0
    if cached:  # it does not wait, so it keeps the GIL
        nbytes = calls.pread_cached(fd, buffer, count, offset)
        return nbytes if nbytes >= 0 else -errno
    while True:
        with nogil:
            nbytes = calls.pread(fd, buffer, count, offset)
            if nbytes < 0:
                number = errno
        if nbytes >= 0:
            return nbytes
        if number != EINTR:
            return -number
        check_signals()


cdef int keep_piece(CoreState core, Py_ssize_t index, tuple entry, bytes piece) except -1:
    """Put bytes that were read from the start of a range in its place."""
    cdef EntryQueue queue = core.queue
    cdef object fd, offset, count, file, refused
    cdef Py_ssize_t slot = queue.slot(index), size = PyBytes_GET_SIZE(piece)
    if queue.slots[slot] is not entry:
        raise RuntimeError("the batch was changed while it was in use")
    fd, offset, count, file, refused = entry
    if size == count:
        queue.slots[slot] = piece
        core.ranges -= 1
    else:
        rest = (fd, offset + size, count - size, file, refused)
        queue.insert(index, piece)
        queue.slots[queue.slot(index + 1)] = rest
    return 0


cdef long long send_joined(
    CoreState core, object sock, Stage *stage, int flags, bint cached=False
) except RAISED:
    """Send the staged buffers by one send(2); return the number of bytes, -errno or UNUSUAL.

    With `cached`, a range that is not in the page cache is UNUSUAL.
    """
    cdef EntryQueue queue = core.queue
    cdef char on_stack[STACK_LIMIT]
    cdef char *data = on_stack
    cdef bytes on_heap
    cdef object entry
    cdef long long size = stage.size, position = 0, length
    cdef ssize_t nbytes
    cdef int fd, index, number = 0
    if size > STACK_LIMIT:
        on_heap = PyBytes_FromStringAndSize(NULL, size)
        data = PyBytes_AS_STRING(on_heap)
    for index in range(stage.entries):
        entry = queue.slots[queue.head + index]
        if type(entry) is bytes:
            length = min(PyBytes_GET_SIZE(entry), size - position)
            memcpy(data + position, PyBytes_AS_STRING(entry), length)
            position += length
        elif type(entry) is tuple:
            length = min(<long long>(<tuple>entry)[2], size - position)
            if read_range(<tuple>entry, data + position, length, cached) != length:
                return UNUSUAL
            position += length
    if position != size:
        return UNUSUAL
    while True:
        check_signals()
        fd = socket_fileno(sock)
        with nogil:
            nbytes = calls.send(fd, data, size, flags)
            if nbytes < 0:
                number = errno
        if nbytes >= 0 or number != EINTR:
            break
    if nbytes < size and stage.ranges:
        keep_unsent(core, data, max(nbytes, 0), stage)
    return nbytes if nbytes >= 0 else -number


cdef int keep_unsent(CoreState core, const char *data, long long sent, Stage *stage) except -1:
    """Put what was read and not sent in the place of its ranges, so that it is not read again."""
    cdef EntryQueue queue = core.queue
    cdef object entry
    cdef long long position = 0, length
    cdef int index
    for index in range(stage.entries):
        entry = queue.slots[queue.head + index]
        if type(entry) is bytes:
            position += PyBytes_GET_SIZE(entry)
        elif type(entry) is tuple:
            length = min(<long long>(<tuple>entry)[2], stage.size - position)
            if position + length > sent:
                try:
                    piece = PyBytes_FromStringAndSize(data + position, length)
                    keep_piece(core, index, <tuple>entry, piece)
                except MemoryError:
                    return 0  # these bytes are read again
            position += length
    return 0


cdef long long send_gathered(CoreState core, object sock, Stage *stage, int flags) except RAISED:
    """Send the staged buffers by one sendmsg(2), or the only one by send(2); as send_joined()."""
    cdef EntryQueue queue = core.queue
    cdef iovec pieces[MOST_BUFFERS]
    cdef PyObject *held[MOST_BUFFERS]
    cdef Py_buffer on_stack[FEW_VIEWS]
    cdef Py_buffer *exports = on_stack
    cdef msghdr message
    cdef object entry
    cdef char *data
    cdef long long size = stage.size, position = 0, length
    cdef ssize_t nbytes
    cdef int fd, index, count = 0, views = 0, number = 0
    if stage.views > FEW_VIEWS:
        exports = <Py_buffer *>PyMem_Malloc(stage.views * sizeof(Py_buffer))
        if exports is NULL:
            raise MemoryError
    try:
        for index in range(stage.entries):
            entry = queue.slots[queue.head + index]
            if type(entry) is tuple:
                length = min(<long long>(<tuple>entry)[2], size - position)
                piece = PyBytes_FromStringAndSize(NULL, length)
                if read_range(<tuple>entry, PyBytes_AS_STRING(piece), length, False) != length:
                    return UNUSUAL
                keep_piece(core, index, <tuple>entry, piece)
                entry = piece
            if type(entry) is bytes:
                data = PyBytes_AS_STRING(entry)
                length = PyBytes_GET_SIZE(entry)
            elif type(entry) is memoryview and views < stage.views:
                PyObject_GetBuffer(entry, &exports[views], PyBUF_SIMPLE)
                data = <char *>exports[views].buf
                length = exports[views].len
                views += 1
            else:
                continue  # a Release
            Py_INCREF(entry)
            held[count] = <PyObject *>entry
            length = min(length, size - position)
            position += length
            pieces[count].iov_base = data
            pieces[count].iov_len = length
            count += 1
        if position != size:
            return UNUSUAL
        memset(&message, 0, sizeof(message))
        message.msg_iov = pieces
        message.msg_iovlen = count
        while True:
            check_signals()
            fd = socket_fileno(sock)
            with nogil:
                if count == 1:
                    nbytes = calls.send(fd, pieces[0].iov_base, pieces[0].iov_len, flags)
                else:
                    nbytes = calls.sendmsg(fd, &message, flags)
                if nbytes < 0:
                    number = errno
            if nbytes >= 0 or number != EINTR:
                return nbytes if nbytes >= 0 else -number
    finally:
        for index in range(views):
            PyBuffer_Release(&exports[index])
        if exports != on_stack:
            PyMem_Free(exports)
        for index in range(count):
            Py_DECREF(<object>held[index])


cdef long long send_range(tuple entry, object sock, long long count) except RAISED:
    """Send the first `count` bytes of a range by sendfile; return as send_joined()."""
    cdef int fd, source = entry[0]
    cdef off_t offset = entry[1]
    cdef ssize_t nbytes
    cdef int number = 0
    while True:
        check_signals()
        fd = socket_fileno(sock)
        with nogil:
            nbytes = calls.sendfile(fd, source, &offset, count)
            if nbytes < 0:
                number = errno
        if nbytes > 0:
            return nbytes
        if nbytes == 0:
            return UNUSUAL  # the file has ended
        if number != EINTR:
            return -number


cdef long long account_error(CoreState core, int number) except RAISED:
    """Account for a system call that failed with this errno; return AGAIN or FAILED."""
    if number == EAGAIN or number == EWOULDBLOCK:
        core.wants = EVENT_WRITE
        return AGAIN
    return core.call_raised(OSError(number, os.strerror(number)))


cdef long long send_steps(CoreState core, object sock, long long limit) except RAISED:
    """Do what _send_in_steps of _send.py does; the caller has stored SENDING."""
    cdef Stage stage
    cdef tuple entry
    cdef long long sent = 0, nbytes, most, staged = 0
    cdef bint more, more_pending = False, removed
    cdef int flags
    cdef object corked = None, code
    core.pinned = 0
    try:
        while True:
            most = min(limit, MAX_CALL_BYTES)
            measure(core, staged or most, &stage)
            if stage.buffers:
                more = stage.size < core.left and stage.size < limit
                flags = MSG_NOSIGNAL | (MSG_MORE if more else 0)
                if stage.buffers > 1 and not stage.views and (
                    stage.copied <= JOIN_LIMIT or stage.copied <= JOIN_MEAN_LIMIT * stage.buffers
                ):
                    nbytes = send_joined(core, sock, &stage, flags)
                else:
                    nbytes = send_gathered(core, sock, &stage, flags)
                if nbytes == UNUSUAL:  # a read was short or has failed
                    try:
                        # The next turn sends the buffers that this makes.
                        _, staged = core.stage(most, COPY_LIMIT)
                    except BaseException as exc:
                        code = core.call_raised(exc)
                        if code is None:
                            raise
                        return sent or code
                    continue
                staged = 0
                if nbytes >= 0:
                    more_pending = more
            elif send_names["getsignal"](SIGPIPE) != SIG_IGN:
                core.refuse_sendfile()  # sendfile could raise the signal
                continue
            else:
                entry = core.queue[0]
                stage.size = min(<long long>entry[2], most)
                more = stage.size < core.left and stage.size < limit
                if more and corked is None:
                    # Stored before the option is set, so that it is removed in any case.
                    corked = send_names["can_cork"](sock)
                    if corked:
                        send_names["cork"](sock)
                nbytes = send_range(entry, sock, stage.size)
                if nbytes in (-EINVAL, -ENOSYS, -EOPNOTSUPP, -EOVERFLOW):
                    core.refuse_sendfile()
                    continue
                if nbytes == UNUSUAL:  # the file has ended
                    code = core.call_raised(send_names["TruncatedFileError"](*entry[:3]))
                    return sent or code
                if nbytes >= 0:
                    more_pending = False
            if nbytes < 0:
                nbytes = account_error(core, -nbytes)
                return sent or nbytes
            sent += nbytes
            limit -= nbytes
            more = more and nbytes == stage.size
            consume(core, nbytes)
            if not more:
                return sent or AGAIN
    finally:
        if more_pending or corked:
            removed = False
            try:
                removed = send_names["uncork"](sock, corked=bool(corked))
            finally:
                # As in the twin: a cork that stays is taken for the caller's by the next call.
                if not removed:
                    send_names["uncork"](sock, corked=bool(corked))


def iob_send(sock, batch, *, flags=0, limit=_UNSET):
    cdef CoreState core
    cdef long long most = SEND_LIMIT
    if limit is not _UNSET:
        most = plain_limit(limit)
    if is_plain(sock) and isinstance(batch, IOBatchBase) and flags is 0:
        core = (<IOBatchBase>batch)._core
        if most > 0 and not core.activity and not core.release_pending:
            if core.error is not None:
                return FAILED
            if not core.left:
                return 0
            if has_no_timeout(sock):
                core.activity = SENDING
                try:
                    return send_steps(core, sock, most)
                finally:
                    core.activity = IDLE
    return twin_iob_send(sock, batch, flags=flags, limit=SEND_LIMIT if limit is _UNSET else limit)


cdef inline bint is_plain(object sock):
    """Return whether the system calls of this module do what the methods of a socket do."""
    return type(sock) is socket_class or type(sock) is scripted_class


def iob_write(sock, batch, callback, *, limit=_UNSET):
    cdef CoreState core
    cdef EntryQueue queue
    cdef object entry, view, answer
    cdef long long most = WRITE_LIMIT, written = 0, nbytes, offered, pin_before
    if limit is not _UNSET:
        most = plain_limit(limit)
    if isinstance(batch, IOBatchBase) and most > 0:
        core = (<IOBatchBase>batch)._core
        if core.left and not core.activity and not core.release_pending and core.error is None:
            pin_before = core.pinned
            core.activity = SENDING
            core.wants = EVENT_WRITE
            try:
                while core.left and written < most:
                    pin_before = core.pinned
                    queue = core.queue
                    entry = queue.slots[queue.slot(0)]
                    if (
                        type(entry) is bytes and not pin_before
                        and (queue.tail - queue.head == 1 or PyBytes_GET_SIZE(entry) >= JOIN_OFFER_LIMIT)
                    ):
                        core.pinned = min(PyBytes_GET_SIZE(entry), most - written)
                        view = memoryview(entry)[:core.pinned]
                    else:
                        view = core.pin_head(most - written)
                    offered = len(view)
                    core.error = count_unknown
                    try:
                        answer = callback(sock, view)
                    except Exception as exc:
                        answer = write_names["count_taken"](exc, offered, core)
                    finally:
                        write_names["release"](view)
                    if type(answer) is int and 0 < answer <= offered:
                        nbytes = answer
                    else:
                        nbytes = write_names["check_answer"](answer, offered, core)
                        if nbytes < 0:
                            break
                    pin_before = 0
                    core.error = None
                    consume(core, nbytes)
                    written += nbytes
                    if nbytes < offered:
                        break
            except BaseException as exc:
                code = core.call_raised(exc)
                if code is None:
                    # A batch that has failed has no pin: see BatchCore.fail().
                    core.pinned = 0 if core.error is count_unknown else pin_before
                    raise
                return written or code
            finally:
                core.activity = IDLE
            return written or AGAIN
    return twin_iob_write(sock, batch, callback, limit=WRITE_LIMIT if limit is _UNSET else limit)


cdef bint has_no_timeout(object sock) except -1:
    """Return whether a socket has no timeout; otherwise the twin must wait for it."""
    timeout = socket_gettimeout(sock)
    return timeout is None or timeout == 0


cdef long long plain_limit(object limit) except? -1:
    """Return a limit in bytes; -1: the twin must look at it."""
    if limit is None:
        return MAX_BYTES
    if type(limit) is int and 0 < limit <= MAX_BYTES:
        return limit
    return -1


# BatchWriter's short way

cdef class TurnBudgetBase:
    """The fields of a TurnBudget that the short way uses."""

    cdef public long long left, refill_below


cdef class PipelinesBase:
    """The field of a Pipelines that the short way uses."""

    cdef public object codec


cdef class WriteQueueBase:
    """The field of a WriteQueue that the short way uses."""

    cdef public object order


cdef class WriteSenderBase:
    """The fields of a WriteSender that the short way uses."""

    cdef public int state
    cdef public bint _direct
    cdef public object sock, _rest
    cdef public TurnBudgetBase budget
    cdef public PipelinesBase pipelines
    cdef public WriteQueueBase queue


cdef class WriteOperationBase:
    """The field of a WriteOperation, and how one that was done when it was posted is awaited."""

    cdef public object _write

    def __await__(self):
        if type(self._write) is not tuple:
            return twin_await(self)
        result = Result.__new__(Result)
        (<Result>result).value = (<tuple>self._write)[2]
        return result


@cython.final
@cython.freelist(8)
cdef class Result:
    """The iterator of an awaitable that does not suspend: it ends at once, with a value."""

    cdef object value

    def __iter__(self):
        return self

    def __next__(self):
        raise StopIteration(self.value)

    def send(self, _value):
        raise StopIteration(self.value)

    def throw(self, kind, value=None, traceback=None):
        raise kind if value is None else value

    def close(self):
        pass


cdef PyObject *end_with_result(object result) noexcept:
    """Do what __next__ does, without a traceback, which would cost more than the rest."""
    PyErr_SetObject(StopIteration, (<Result>result).value)
    return NULL


(<PyTypeObject *>Result).tp_iternext = end_with_result


cdef class BatchWriterBase:
    """The fields of a BatchWriter that the short way uses."""

    cdef public WriteSenderBase _sender
    cdef public object _timeout, _stall_timeout, user_info


class BatchWriter:
    """The method of a BatchWriter, as a function: see IOBatch."""

    def write(BatchWriterBase self not None, batch=_UNSET, **options):
        cdef WriteSenderBase sender
        cdef TurnBudgetBase budget
        cdef WriteOperationBase operation
        cdef CoreState core
        cdef long long left, sent, code
        if batch is _UNSET:
            return twin_write(self, **options)
        if options or type(batch) is not batch_class or self._sender is None:  # None: no __init__
            return twin_write(self, batch, **options)
        core = (<IOBatchBase>batch)._core
        sender = self._sender
        budget = sender.budget
        left, sent = core.left, core.sent
        if (
            sender.state != EMPTY or not sender._direct or sender.pipelines.codec is not None
            or sender._rest is not None or not 0 < left <= budget.left
            or core.activity or core.release_pending or core.releasable or core.error is not None
            or not is_plain(sender.sock)
        ):
            return twin_write(self, batch)
        if not has_no_timeout(sender.sock):
            return twin_write(self, batch)
        # Lock writer and batch: a finalizer must not send this batch or a queued write.
        sender.state = BUSY
        core.activity = SENDING
        try:
            code = send_whole(core, sender.sock)
        except BaseException:
            core.activity = IDLE
            sender.close()
            raise
        core.activity = IDLE
        if code == UNUSUAL:
            sender.state = EMPTY
            return twin_write(self, batch)
        if code != left:
            try:
                return sender._queue_rest(
                    core, sent, code, self.user_info,
                    timeout=self._timeout, stall_timeout=self._stall_timeout,
                )
            except BaseException:
                sender.close()
                raise
        core.sent = sent  # a batch's count does not include bytes that a write has taken from it
        budget.left -= left
        sender.state = EMPTY
        if budget.left < budget.refill_below:
            budget.schedule_refill()
        if sender.queue.order:  # a finalizer has posted writes
            sender._send_queued()
        operation = WriteOperationBase.__new__(operation_class)
        operation._write = (sender, self.user_info, left)
        return operation


cdef bint are_cached(EntryQueue queue) except -1:
    """Return whether all ranges can be read without a wait, as PageCacheProbe.ready() finds out."""
    cdef object entry
    cdef long long offset, count, ready
    cdef Py_ssize_t index
    if queue.tail - queue.head > MAX_PROBED_ENTRIES:
        return False
    for index in range(queue.head, queue.tail):
        entry = queue.slots[index]
        if type(entry) is tuple:
            offset = (<tuple>entry)[1]
            count = (<tuple>entry)[2]
            ready = 0
            if count > SINGLE_PROBE_LIMIT and not is_cached(<tuple>entry, offset):
                return False
            while count - ready > PROBE_STRIDE:
                ready += PROBE_STRIDE
                if not is_cached(<tuple>entry, offset + ready - 1):
                    return False
            if not is_cached(<tuple>entry, offset + count - 1):
                return False
    return True


cdef bint is_cached(tuple entry, off_t offset) except -1:
    """Return whether a byte of a file can be read without a wait; True if that can't be found."""
    cdef int fd = entry[0]
    cdef char byte
    return calls.pread_cached(fd, &byte, 1, offset) >= 0 or errno not in (EAGAIN, EINTR)


cdef long long send_whole(CoreState core, object sock) except RAISED:
    """Send all of a batch that needs no wait for the disk; return as iob_send(), or UNUSUAL."""
    cdef Stage stage
    cdef long long nbytes, left = core.left
    if left > JOIN_CACHED_LIMIT:
        if core.ranges and not are_cached(core.queue):
            return UNUSUAL
        return send_steps(core, sock, left)
    measure(core, left, &stage)
    if stage.size != left:
        return UNUSUAL
    core.pinned = 0
    if stage.buffers == 1 and not stage.ranges:
        nbytes = send_gathered(core, sock, &stage, MSG_NOSIGNAL)
    else:
        nbytes = send_joined(core, sock, &stage, MSG_NOSIGNAL, True)
    if nbytes == UNUSUAL:
        return UNUSUAL
    if nbytes < 0:
        return account_error(core, -nbytes)
    consume(core, nbytes)
    return nbytes or AGAIN


# Files

cdef long long TIME_LIMIT = 9223372036  # in seconds


def file_version(int fd):
    cdef file_status status
    cdef int failed
    with nogil:
        failed = c_fstat(fd, &status)
    # In nanoseconds, 64 bits have no room for years before 1678 and after 2261.
    if failed or not -TIME_LIMIT < status.st_mtim.tv_sec < TIME_LIMIT:
        return twin_file_version(fd)
    return (
        status.st_size,
        status.st_mtim.tv_sec * 1000000000 + status.st_mtim.tv_nsec,
        status.st_ctim.tv_sec * 1000000000 + status.st_ctim.tv_nsec,
    )


# Connecting the two forms

cdef bint claimed = False


def claim():
    """Return whether the caller is the first: only one import of iobatch can use this module."""
    global claimed
    first, claimed = not claimed, True
    return first


# Each of these has the compiled form of a function or class call its twin for what is unusual.

def connect_BatchCore(twin):
    global core_class, count_unknown, STAGE_LIMIT, JOIN_OFFER_LIMIT
    names = twin.stage.__globals__
    core_class = twin
    count_unknown = names["COUNT_UNKNOWN"]
    STAGE_LIMIT = names["STAGE_LIMIT"]
    JOIN_OFFER_LIMIT = names["JOIN_OFFER_LIMIT"]


def connect_file_version(twin):
    global twin_file_version
    twin_file_version = twin


def connect_IOBatch(twin, form):
    global batch_class, twin_addbuf, twin_addbufs, twin_addfile, twin_reset, twin_del
    batch_class = form
    twin_addbuf = twin.addbuf
    twin_addbufs = twin.addbufs
    twin_addfile = twin.addfile
    twin_reset = twin.reset
    twin_del = twin.__del__


def connect_iob_send(twin):
    global twin_iob_send, send_names, SEND_LIMIT, COPY_LIMIT, JOIN_LIMIT, JOIN_MEAN_LIMIT
    twin_iob_send = twin
    send_names = twin.__globals__
    SEND_LIMIT = send_names["SEND_LIMIT"]
    COPY_LIMIT = send_names["COPY_LIMIT"]
    JOIN_LIMIT = send_names["JOIN_LIMIT"]
    JOIN_MEAN_LIMIT = send_names["JOIN_MEAN_LIMIT"]


def connect_iob_write(twin):
    global twin_iob_write, write_names, WRITE_LIMIT
    twin_iob_write = twin
    write_names = twin.__globals__
    WRITE_LIMIT = write_names["WRITE_LIMIT"]


def connect_PageCacheProbe(twin):
    global JOIN_CACHED_LIMIT, MAX_PROBED_ENTRIES, SINGLE_PROBE_LIMIT, PROBE_STRIDE
    names = twin.try_join_cached.__globals__
    JOIN_CACHED_LIMIT = names["JOIN_CACHED_LIMIT"]
    MAX_PROBED_ENTRIES = names["MAX_PROBED_ENTRIES"]
    SINGLE_PROBE_LIMIT = names["SINGLE_PROBE_LIMIT"]
    PROBE_STRIDE = names["PROBE_STRIDE"]


def connect_WriteOperation(twin, form):
    global operation_class, twin_await
    operation_class = form
    twin_await = twin.__await__


def connect_BatchWriter(twin, _form):
    global twin_write
    twin_write = twin.write


# Scripted system calls, for tests

cdef dict script = {}
cdef object script_error = None


cdef int check_signals() except -1:
    global script_error
    error, script_error = script_error, None
    if error is not None:
        raise error
    PyErr_CheckSignals()
    return 0


cdef enum:
    NOT_SCRIPTED = -2


cdef ssize_t scripted(str name, tuple arguments, void *buffer=NULL, int size=0) noexcept:
    """Call the function that stands for a system call; its exception sets errno."""
    global script_error
    cdef int number
    try:
        result = script[name](*arguments)
        if result is NotImplemented:
            return NOT_SCRIPTED
        if buffer is NULL:
            return result
        number = min(len(result), size)
        memcpy(buffer, PyBytes_AS_STRING(result), number)
        return number
    except OSError as error:
        number = error.errno or EAGAIN
    except BaseException as error:
        script_error = error
        number = EINTR
    set_errno(number)
    return -1


cdef extern from *:
    """
    static void set_errno(int number) { errno = number; }
    """
    void set_errno(int number)


cdef ssize_t scripted_send(int fd, const void *data, size_t size, int flags) noexcept with gil:
    piece = PyBytes_FromStringAndSize(<const char *>data, size)
    cdef ssize_t nbytes = scripted("send", (fd, piece, flags))
    if nbytes == NOT_SCRIPTED:
        with nogil:
            nbytes = c_send(fd, data, size, flags)
    return nbytes


cdef ssize_t scripted_sendmsg(int fd, const msghdr *message, int flags) noexcept with gil:
    cdef list pieces = []
    cdef size_t index
    cdef ssize_t nbytes
    for index in range(message.msg_iovlen):
        piece = message.msg_iov[index]
        pieces.append(PyBytes_FromStringAndSize(<const char *>piece.iov_base, piece.iov_len))
    nbytes = scripted("sendmsg", (fd, pieces, flags))
    if nbytes == NOT_SCRIPTED:
        with nogil:
            nbytes = c_sendmsg(fd, message, flags)
    return nbytes


cdef ssize_t scripted_sendfile(int fd, int source, off_t *offset, size_t count) noexcept with gil:
    return scripted("sendfile", (fd, source, offset[0], count))


cdef ssize_t scripted_pread(int fd, void *buffer, size_t count, off_t offset) noexcept with gil:
    return scripted("pread", (fd, count, offset), buffer, count)


cdef ssize_t scripted_preadv(int fd, void *buffer, size_t count, off_t offset) noexcept with gil:
    piece = bytearray(count)
    nbytes = scripted("preadv", (fd, (piece,), offset, os.RWF_NOWAIT))
    if nbytes > 0:
        memcpy(buffer, PyByteArray_AS_STRING(piece), min(nbytes, <Py_ssize_t>count))
    return nbytes


def script_call(str name, function):
    """Have a Python function stand for a system call; None: the system's own again.

    Args:
        name: send, sendmsg, sendfile, pread, or preadv, which reads only from the page cache.
        function: called as the function of os, or with a descriptor, bytes or a list of bytes, and
            flags. It returns as much as that function, or raises an OSError with the errno. One
            that stands for send or sendmsg can return NotImplemented: the system's own is called.

    """
    script[name] = function
    calls.send = c_send
    calls.sendmsg = c_sendmsg
    calls.sendfile = c_sendfile
    calls.pread = c_pread
    calls.pread_cached = c_pread_cached
    if script.get("send") is not None:
        calls.send = scripted_send
    if script.get("sendmsg") is not None:
        calls.sendmsg = scripted_sendmsg
    if script.get("sendfile") is not None:
        calls.sendfile = scripted_sendfile
    if script.get("pread") is not None:
        calls.pread = scripted_pread
    if script.get("preadv") is not None:
        calls.pread_cached = scripted_preadv


def script_socket(cls):
    """Have this module handle the sockets of a class as those of socket.socket."""
    global scripted_class
    scripted_class = cls
