/* A library to preload: it counts system calls, and makes one of them fail, return short, or end
   with a signal. shim.py builds it, and controls it through `shim_state`.

   Only calls that are made while `counting` is set are counted, of all threads. A function and its
   variants (those with 64 at the end of their name among them) have one count. A call that fails
   does nothing, except those that on Linux do their work in any case: close(2), and epoll_ctl(2)
   where it removes a descriptor.

   A call that returns short transfers `part` bytes, which is half of what it transferred without
   the fault. It is the nth call, or the first one after it that is asked for more than these bytes
   and transfers exactly them. Others have no fault, and are not met: they had no room for more, or
   nothing more to transfer. */

#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum call {
    SEND, SENDTO, SENDMSG, SENDFILE, PREAD, PREADV2, WRITE, WRITEV, SETSOCKOPT, GETSOCKOPT, FSTAT,
    OPEN, DUP, POLL, EPOLL_CREATE, EPOLL_CTL, EPOLL_WAIT, CLOSE, LSEEK, IOCTL, FADVISE,
    ACCEPT, GETDENTS, CALLS
};

const char *const shim_names[] = {
    "send", "sendto", "sendmsg", "sendfile", "pread", "preadv2", "write", "writev", "setsockopt",
    "getsockopt", "fstat", "open", "dup", "poll", "epoll_create", "epoll_ctl", "epoll_wait",
    "close", "lseek", "ioctl", "posix_fadvise", "accept", "getdents", NULL
};

enum { NONE = 0, SHORT = -1, MOST_BUFFERS = 1024, MOST_RESULTS = 1024 };

struct {
    int counting;      /* whether calls are counted */
    int call;          /* the call that has the fault, of enum call; -1: none has */
    int fault;         /* its errno; SHORT; NONE: the call is as always */
    int signal;        /* raised after this call; 0: none is */
    long nth;          /* which of these calls has the fault, from 1 */
    long part;         /* the bytes that it transfers if it is SHORT */
    long limit;        /* more calls than this are a loop without an end: the process aborts */
    long met;          /* how often the fault was met */
    long bad_closes;   /* how many calls of close(2) the kernel has answered with EBADF, ever */
    long total;        /* the number of calls counted */
    long counts[CALLS];
    long results[CALLS][MOST_RESULTS]; /* of the first calls: a count, or a negative errno */
} shim_state = {.call = -1};

/* A call that is made. */
struct turn {
    enum call call;
    long nth;          /* from 1; 0: it is not counted */
    int has_fault;
    int fault;         /* NONE if it has none */
};

/* Count a call. */
static struct turn next(enum call call)
{
    struct turn turn = {.call = call};
    if (!__atomic_load_n(&shim_state.counting, __ATOMIC_SEQ_CST))
        return turn;
    if (__atomic_add_fetch(&shim_state.total, 1, __ATOMIC_SEQ_CST) > shim_state.limit) {
        shim_state.counting = 0;
        dprintf(STDERR_FILENO, "more than %ld calls, the last: %s\n", shim_state.limit,
                shim_names[call]);
        abort();
    }
    turn.nth = __atomic_add_fetch(&shim_state.counts[call], 1, __ATOMIC_SEQ_CST);
    turn.has_fault = (int)call == shim_state.call
        && (turn.nth == shim_state.nth
            || (shim_state.fault == SHORT && turn.nth > shim_state.nth && !shim_state.met));
    turn.fault = turn.has_fault ? shim_state.fault : NONE;
    return turn;
}

/* End a call: record its result and whether the fault was met, raise the signal, and set errno. */
static void finish(struct turn turn, long result)
{
    int error = errno;
    if (turn.nth && turn.nth <= MOST_RESULTS)
        shim_state.results[turn.call][turn.nth - 1] = result < 0 ? -error : result;
    if (turn.has_fault && (turn.fault != SHORT || result == shim_state.part)) {
        __atomic_add_fetch(&shim_state.met, 1, __ATOMIC_SEQ_CST);
        if (shim_state.signal)
            raise(shim_state.signal);
    }
    errno = error;
}

/* Return the number of bytes that a SHORT call is to transfer. It has no fault if that is all. */
static size_t shorten(struct turn *turn, size_t size)
{
    turn->has_fault = size > (size_t)shim_state.part;
    return turn->has_fault ? (size_t)shim_state.part : size;
}

/* Copy the bytes of some buffers that a SHORT call is to transfer; return the number of buffers. */
static int cut(struct turn *turn, const struct iovec *buffers, int count, struct iovec *part)
{
    size_t left = 0;
    int index;
    for (index = 0; index < count; index++)
        left += buffers[index].iov_len;
    left = shorten(turn, left);
    for (index = 0; index < count && index < MOST_BUFFERS && left; index++) {
        part[index] = buffers[index];
        if (part[index].iov_len > left)
            part[index].iov_len = left;
        left -= part[index].iov_len;
    }
    return index;
}

/* Define a function that stands before the one of the C library. WHOLE and PART are the arguments
   of the call as it is and of the one that is short. */
#define WRAP(CALL, RESULT, FUNCTION, PARAMETERS, WHOLE, PART)                                      \
    RESULT FUNCTION PARAMETERS                                                                     \
    {                                                                                              \
        static RESULT(*real) PARAMETERS;                                                           \
        RESULT result = -1;                                                                        \
        struct turn turn = next(CALL);                                                             \
        if (!real)                                                                                 \
            real = dlsym(RTLD_NEXT, #FUNCTION);                                                    \
        if (turn.fault == NONE)                                                                    \
            result = real WHOLE;                                                                   \
        else if (turn.fault == SHORT)                                                              \
            result = real PART;                                                                    \
        else                                                                                       \
            errno = turn.fault;                                                                    \
        finish(turn, result);                                                                      \
        return result;                                                                             \
    }

/* As WRAP, for a function that takes an array of buffers. */
#define WRAP_BUFFERS(CALL, FUNCTION, PARAMETERS, WHOLE, PART)                                      \
    ssize_t FUNCTION PARAMETERS                                                                    \
    {                                                                                              \
        static ssize_t(*real) PARAMETERS;                                                          \
        struct iovec part[MOST_BUFFERS];                                                           \
        ssize_t result = -1;                                                                       \
        struct turn turn = next(CALL);                                                             \
        if (!real)                                                                                 \
            real = dlsym(RTLD_NEXT, #FUNCTION);                                                    \
        if (turn.fault == NONE) {                                                                  \
            result = real WHOLE;                                                                   \
        } else if (turn.fault == SHORT) {                                                          \
            count = cut(&turn, buffers, count, part);                                              \
            result = real PART;                                                                    \
        } else {                                                                                   \
            errno = turn.fault;                                                                    \
        }                                                                                          \
        finish(turn, result);                                                                      \
        return result;                                                                             \
    }

WRAP(SEND, ssize_t, send, (int fd, const void *data, size_t size, int flags),
     (fd, data, size, flags), (fd, data, shorten(&turn, size), flags))
WRAP(SENDTO, ssize_t, sendto,
     (int fd, const void *data, size_t size, int flags, const struct sockaddr *to, socklen_t length),
     (fd, data, size, flags, to, length), (fd, data, shorten(&turn, size), flags, to, length))
WRAP(SENDFILE, ssize_t, sendfile, (int fd, int file, off_t *offset, size_t size),
     (fd, file, offset, size), (fd, file, offset, shorten(&turn, size)))
WRAP(SENDFILE, ssize_t, sendfile64, (int fd, int file, off64_t *offset, size_t size),
     (fd, file, offset, size), (fd, file, offset, shorten(&turn, size)))
WRAP(PREAD, ssize_t, pread, (int fd, void *data, size_t size, off_t offset),
     (fd, data, size, offset), (fd, data, shorten(&turn, size), offset))
WRAP(PREAD, ssize_t, pread64, (int fd, void *data, size_t size, off64_t offset),
     (fd, data, size, offset), (fd, data, shorten(&turn, size), offset))
WRAP(WRITE, ssize_t, write, (int fd, const void *data, size_t size),
     (fd, data, size), (fd, data, shorten(&turn, size)))

WRAP_BUFFERS(PREADV2, preadv, (int fd, const struct iovec *buffers, int count, off_t offset),
             (fd, buffers, count, offset), (fd, part, count, offset))
WRAP_BUFFERS(PREADV2, preadv64, (int fd, const struct iovec *buffers, int count, off64_t offset),
             (fd, buffers, count, offset), (fd, part, count, offset))
WRAP_BUFFERS(PREADV2, preadv2,
             (int fd, const struct iovec *buffers, int count, off_t offset, int flags),
             (fd, buffers, count, offset, flags), (fd, part, count, offset, flags))
WRAP_BUFFERS(PREADV2, preadv64v2,
             (int fd, const struct iovec *buffers, int count, off64_t offset, int flags),
             (fd, buffers, count, offset, flags), (fd, part, count, offset, flags))
WRAP_BUFFERS(WRITEV, writev, (int fd, const struct iovec *buffers, int count),
             (fd, buffers, count), (fd, part, count))

/* The calls below transfer no bytes, so SHORT is not a fault of theirs. */
#define WRAP_WHOLE(CALL, FUNCTION, PARAMETERS, ARGUMENTS)                                          \
    WRAP(CALL, int, FUNCTION, PARAMETERS, ARGUMENTS, ARGUMENTS)

WRAP_WHOLE(SETSOCKOPT, setsockopt,
           (int fd, int level, int name, const void *value, socklen_t size),
           (fd, level, name, value, size))
WRAP_WHOLE(GETSOCKOPT, getsockopt, (int fd, int level, int name, void *value, socklen_t *size),
           (fd, level, name, value, size))
WRAP_WHOLE(FSTAT, fstat, (int fd, struct stat *status), (fd, status))
WRAP_WHOLE(FSTAT, fstat64, (int fd, struct stat64 *status), (fd, status))
WRAP_WHOLE(FSTAT, fstatat, (int fd, const char *path, struct stat *status, int flags),
           (fd, path, status, flags))
WRAP_WHOLE(FSTAT, fstatat64, (int fd, const char *path, struct stat64 *status, int flags),
           (fd, path, status, flags))
WRAP_WHOLE(FSTAT, stat, (const char *path, struct stat *status), (path, status))
WRAP_WHOLE(FSTAT, stat64, (const char *path, struct stat64 *status), (path, status))
WRAP_WHOLE(FSTAT, lstat, (const char *path, struct stat *status), (path, status))
WRAP_WHOLE(FSTAT, lstat64, (const char *path, struct stat64 *status), (path, status))
WRAP_WHOLE(FSTAT, statx,
           (int fd, const char *path, int flags, unsigned mask, struct statx *status),
           (fd, path, flags, mask, status))
WRAP_WHOLE(DUP, dup, (int fd), (fd))
WRAP_WHOLE(DUP, dup2, (int fd, int other), (fd, other))
WRAP_WHOLE(DUP, dup3, (int fd, int other, int flags), (fd, other, flags))
WRAP_WHOLE(POLL, poll, (struct pollfd *files, nfds_t count, int timeout), (files, count, timeout))
WRAP_WHOLE(EPOLL_CREATE, epoll_create1, (int flags), (flags))
WRAP_WHOLE(ACCEPT, accept, (int fd, struct sockaddr *from, socklen_t *length), (fd, from, length))
WRAP_WHOLE(ACCEPT, accept4, (int fd, struct sockaddr *from, socklen_t *length, int flags),
           (fd, from, length, flags))
WRAP_WHOLE(OPEN, memfd_create, (const char *name, unsigned flags), (name, flags))
WRAP_WHOLE(EPOLL_WAIT, epoll_wait,
           (int epoll, struct epoll_event *events, int count, int timeout),
           (epoll, events, count, timeout))
WRAP_WHOLE(EPOLL_WAIT, epoll_pwait,
           (int epoll, struct epoll_event *events, int count, int timeout, const sigset_t *mask),
           (epoll, events, count, timeout, mask))
WRAP(LSEEK, off_t, lseek, (int fd, off_t offset, int whence),
     (fd, offset, whence), (fd, offset, whence))
WRAP(LSEEK, off64_t, lseek64, (int fd, off64_t offset, int whence),
     (fd, offset, whence), (fd, offset, whence))

ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
    static ssize_t (*real)(int, const struct msghdr *, int);
    struct iovec part[MOST_BUFFERS];
    struct msghdr half = *message;
    ssize_t result = -1;
    struct turn turn = next(SENDMSG);
    if (!real)
        real = dlsym(RTLD_NEXT, "sendmsg");
    if (turn.fault == SHORT) {
        half.msg_iovlen = cut(&turn, message->msg_iov, message->msg_iovlen, part);
        half.msg_iov = part;
    }
    if (turn.fault <= NONE)
        result = real(fd, &half, flags);
    else
        errno = turn.fault;
    finish(turn, result);
    return result;
}

int close(int fd)
{
    static int (*real)(int);
    struct turn turn = next(CLOSE);
    int result;
    if (!real)
        real = dlsym(RTLD_NEXT, "close");
    result = real(fd);
    if (result < 0 && errno == EBADF)
        __atomic_add_fetch(&shim_state.bad_closes, 1, __ATOMIC_SEQ_CST);
    if (turn.fault > NONE) {
        result = -1;
        errno = turn.fault;
    }
    finish(turn, result);
    return result;
}

int epoll_ctl(int epoll, int operation, int fd, struct epoll_event *event)
{
    static int (*real)(int, int, int, struct epoll_event *);
    struct turn turn = next(EPOLL_CTL);
    int result = -1;
    if (!real)
        real = dlsym(RTLD_NEXT, "epoll_ctl");
    if (turn.fault <= NONE || operation == EPOLL_CTL_DEL)
        result = real(epoll, operation, fd, event);
    if (turn.fault > NONE) {
        result = -1;
        errno = turn.fault;
    }
    finish(turn, result);
    return result;
}

/* A failed readdir(3) is that of its getdents(2). */
#define WRAP_READDIR(FUNCTION, ENTRY)                                                              \
    ENTRY *FUNCTION(DIR *folder)                                                                   \
    {                                                                                              \
        static ENTRY *(*real)(DIR *);                                                              \
        ENTRY *result = NULL;                                                                      \
        struct turn turn = next(GETDENTS);                                                         \
        if (!real)                                                                                 \
            real = dlsym(RTLD_NEXT, #FUNCTION);                                                    \
        if (turn.fault <= NONE)                                                                    \
            result = real(folder);                                                                 \
        else                                                                                       \
            errno = turn.fault;                                                                    \
        finish(turn, turn.fault > NONE ? -1 : 0);                                                  \
        return result;                                                                             \
    }

WRAP_READDIR(readdir, struct dirent)
WRAP_READDIR(readdir64, struct dirent64)

/* The error of posix_fadvise(3) is its result. */
#define WRAP_FADVISE(FUNCTION, OFFSET)                                                             \
    int FUNCTION(int fd, OFFSET offset, OFFSET size, int advice)                                   \
    {                                                                                              \
        static int (*real)(int, OFFSET, OFFSET, int);                                              \
        struct turn turn = next(FADVISE);                                                          \
        int result = turn.fault;                                                                   \
        if (!real)                                                                                 \
            real = dlsym(RTLD_NEXT, #FUNCTION);                                                    \
        if (result <= NONE)                                                                        \
            result = real(fd, offset, size, advice);                                               \
        finish(turn, 0);                                                                           \
        return result;                                                                             \
    }

WRAP_FADVISE(posix_fadvise, off_t)
WRAP_FADVISE(posix_fadvise64, off64_t)

/* Functions with one more argument for some of their operations: any argument fits a pointer. */
#define WRAP_VARIADIC(COUNTS, CALL, FUNCTION, PARAMETERS, ARGUMENTS, LAST, TYPE)                   \
    int FUNCTION PARAMETERS                                                                        \
    {                                                                                              \
        static int(*real) PARAMETERS;                                                              \
        struct turn turn = COUNTS ? next(CALL) : (struct turn){0};                                 \
        int result = -1;                                                                           \
        va_list list;                                                                              \
        TYPE argument;                                                                             \
        va_start(list, LAST);                                                                      \
        argument = va_arg(list, TYPE);                                                             \
        va_end(list);                                                                              \
        if (!real)                                                                                 \
            real = dlsym(RTLD_NEXT, #FUNCTION);                                                    \
        if (turn.fault <= NONE)                                                                    \
            result = real ARGUMENTS;                                                               \
        else                                                                                       \
            errno = turn.fault;                                                                    \
        finish(turn, result);                                                                      \
        return result;                                                                             \
    }

#define DUPLICATES (operation == F_DUPFD || operation == F_DUPFD_CLOEXEC)

WRAP_VARIADIC(1, OPEN, open, (const char *path, int flags, ...), (path, flags, argument), flags,
              mode_t)
WRAP_VARIADIC(1, OPEN, open64, (const char *path, int flags, ...), (path, flags, argument), flags,
              mode_t)
WRAP_VARIADIC(1, OPEN, openat, (int folder, const char *path, int flags, ...),
              (folder, path, flags, argument), flags, mode_t)
WRAP_VARIADIC(1, OPEN, openat64, (int folder, const char *path, int flags, ...),
              (folder, path, flags, argument), flags, mode_t)
WRAP_VARIADIC(DUPLICATES, DUP, fcntl, (int fd, int operation, ...), (fd, operation, argument),
              operation, void *)
WRAP_VARIADIC(DUPLICATES, DUP, fcntl64, (int fd, int operation, ...), (fd, operation, argument),
              operation, void *)
WRAP_VARIADIC(1, IOCTL, ioctl, (int fd, unsigned long request, ...), (fd, request, argument),
              request, void *)
