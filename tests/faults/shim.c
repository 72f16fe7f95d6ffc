/* A library to preload: it counts system calls, and makes one of them fail, return short, or end
   with a signal. shim.py builds it, and controls it through `shim_state`.

   Only calls that are made while `counting` is set are counted, of all threads. A function and its
   variants (those with 64 at the end of their name among them) have one count. A call that fails
   does nothing, except those that on Linux do their work in any case: close(2), and epoll_ctl(2)
   where it removes a descriptor. A call that returns short transfers half of the bytes, and at
   least one. */

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

enum { NONE = 0, SHORT = -1, MOST_BUFFERS = 1024 };

struct {
    int counting;      /* whether calls are counted */
    int call;          /* the call that has the fault, of enum call; -1: none has */
    int fault;         /* its errno; SHORT; NONE: the call is as always */
    int signal;        /* raised after this call; 0: none is */
    long nth;          /* which of these calls has the fault, from 1 */
    long limit;        /* more calls than this are a loop without an end: the process aborts */
    long met;          /* how often the fault was met */
    long bad_closes;   /* how many calls of close(2) the kernel has answered with EBADF, ever */
    long total;        /* the number of calls counted */
    long counts[CALLS];
} shim_state = {.call = -1};

/* Count a call. Return its fault, and set *number to the signal that follows it. */
static int next(enum call call, int *number)
{
    *number = 0;
    if (!__atomic_load_n(&shim_state.counting, __ATOMIC_SEQ_CST))
        return NONE;
    if (__atomic_add_fetch(&shim_state.total, 1, __ATOMIC_SEQ_CST) > shim_state.limit) {
        shim_state.counting = 0;
        dprintf(STDERR_FILENO, "more than %ld calls, the last: %s\n", shim_state.limit,
                shim_names[call]);
        abort();
    }
    long count = __atomic_add_fetch(&shim_state.counts[call], 1, __ATOMIC_SEQ_CST);
    if ((int)call != shim_state.call || count != shim_state.nth)
        return NONE;
    __atomic_add_fetch(&shim_state.met, 1, __ATOMIC_SEQ_CST);
    *number = shim_state.signal;
    return shim_state.fault;
}

/* End a call: raise the signal, and set errno. */
static void finish(int failed, int error, int number)
{
    if (number)
        raise(number);
    if (failed)
        errno = error;
}

static size_t half(size_t size)
{
    return size > 1 ? size / 2 : size;
}

/* Copy the first half of the bytes of some buffers; return the number of buffers. */
static int halve(const struct iovec *buffers, int count, struct iovec *part)
{
    size_t left = 0;
    int index;
    for (index = 0; index < count; index++)
        left += buffers[index].iov_len;
    left = half(left);
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
        int number, fault = next(CALL, &number);                                                   \
        if (!real)                                                                                 \
            real = dlsym(RTLD_NEXT, #FUNCTION);                                                    \
        if (fault == NONE)                                                                         \
            result = real WHOLE;                                                                   \
        else if (fault == SHORT)                                                                   \
            result = real PART;                                                                    \
        else                                                                                       \
            errno = fault;                                                                         \
        finish(result < 0, errno, number);                                                         \
        return result;                                                                             \
    }

/* As WRAP, for a function that takes an array of buffers. */
#define WRAP_BUFFERS(CALL, FUNCTION, PARAMETERS, WHOLE, PART)                                      \
    ssize_t FUNCTION PARAMETERS                                                                    \
    {                                                                                              \
        static ssize_t(*real) PARAMETERS;                                                          \
        struct iovec part[MOST_BUFFERS];                                                           \
        ssize_t result = -1;                                                                       \
        int number, fault = next(CALL, &number);                                                   \
        if (!real)                                                                                 \
            real = dlsym(RTLD_NEXT, #FUNCTION);                                                    \
        if (fault == NONE) {                                                                       \
            result = real WHOLE;                                                                   \
        } else if (fault == SHORT) {                                                               \
            count = halve(buffers, count, part);                                                   \
            result = real PART;                                                                    \
        } else {                                                                                   \
            errno = fault;                                                                         \
        }                                                                                          \
        finish(result < 0, errno, number);                                                         \
        return result;                                                                             \
    }

WRAP(SEND, ssize_t, send, (int fd, const void *data, size_t size, int flags),
     (fd, data, size, flags), (fd, data, half(size), flags))
WRAP(SENDTO, ssize_t, sendto,
     (int fd, const void *data, size_t size, int flags, const struct sockaddr *to, socklen_t length),
     (fd, data, size, flags, to, length), (fd, data, half(size), flags, to, length))
WRAP(SENDFILE, ssize_t, sendfile, (int fd, int file, off_t *offset, size_t size),
     (fd, file, offset, size), (fd, file, offset, half(size)))
WRAP(SENDFILE, ssize_t, sendfile64, (int fd, int file, off64_t *offset, size_t size),
     (fd, file, offset, size), (fd, file, offset, half(size)))
WRAP(PREAD, ssize_t, pread, (int fd, void *data, size_t size, off_t offset),
     (fd, data, size, offset), (fd, data, half(size), offset))
WRAP(PREAD, ssize_t, pread64, (int fd, void *data, size_t size, off64_t offset),
     (fd, data, size, offset), (fd, data, half(size), offset))
WRAP(WRITE, ssize_t, write, (int fd, const void *data, size_t size),
     (fd, data, size), (fd, data, half(size)))

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
    int number, fault = next(SENDMSG, &number);
    if (!real)
        real = dlsym(RTLD_NEXT, "sendmsg");
    if (fault == SHORT) {
        half.msg_iovlen = halve(message->msg_iov, message->msg_iovlen, part);
        half.msg_iov = part;
    }
    if (fault <= NONE)
        result = real(fd, &half, flags);
    else
        errno = fault;
    finish(result < 0, errno, number);
    return result;
}

int close(int fd)
{
    static int (*real)(int);
    int result, number, fault = next(CLOSE, &number);
    if (!real)
        real = dlsym(RTLD_NEXT, "close");
    result = real(fd);
    if (result < 0 && errno == EBADF)
        __atomic_add_fetch(&shim_state.bad_closes, 1, __ATOMIC_SEQ_CST);
    if (fault > NONE) {
        result = -1;
        errno = fault;
    }
    finish(result < 0, errno, number);
    return result;
}

int epoll_ctl(int epoll, int operation, int fd, struct epoll_event *event)
{
    static int (*real)(int, int, int, struct epoll_event *);
    int result = -1, number, fault = next(EPOLL_CTL, &number);
    if (!real)
        real = dlsym(RTLD_NEXT, "epoll_ctl");
    if (fault <= NONE || operation == EPOLL_CTL_DEL)
        result = real(epoll, operation, fd, event);
    if (fault > NONE) {
        result = -1;
        errno = fault;
    }
    finish(result < 0, errno, number);
    return result;
}

/* A failed readdir(3) is that of its getdents(2). */
#define WRAP_READDIR(FUNCTION, ENTRY)                                                              \
    ENTRY *FUNCTION(DIR *folder)                                                                   \
    {                                                                                              \
        static ENTRY *(*real)(DIR *);                                                              \
        ENTRY *result = NULL;                                                                      \
        int number, fault = next(GETDENTS, &number);                                               \
        if (!real)                                                                                 \
            real = dlsym(RTLD_NEXT, #FUNCTION);                                                    \
        if (fault <= NONE)                                                                         \
            result = real(folder);                                                                 \
        finish(fault > NONE, fault, number);                                                       \
        return result;                                                                             \
    }

WRAP_READDIR(readdir, struct dirent)
WRAP_READDIR(readdir64, struct dirent64)

/* The error of posix_fadvise(3) is its result. */
#define WRAP_FADVISE(FUNCTION, OFFSET)                                                             \
    int FUNCTION(int fd, OFFSET offset, OFFSET size, int advice)                                   \
    {                                                                                              \
        static int (*real)(int, OFFSET, OFFSET, int);                                              \
        int number, result = next(FADVISE, &number);                                               \
        if (!real)                                                                                 \
            real = dlsym(RTLD_NEXT, #FUNCTION);                                                    \
        if (result <= NONE)                                                                        \
            result = real(fd, offset, size, advice);                                               \
        finish(0, 0, number);                                                                      \
        return result;                                                                             \
    }

WRAP_FADVISE(posix_fadvise, off_t)
WRAP_FADVISE(posix_fadvise64, off64_t)

/* Functions with one more argument for some of their operations: any argument fits a pointer. */
#define WRAP_VARIADIC(COUNTS, CALL, FUNCTION, PARAMETERS, ARGUMENTS, LAST, TYPE)                   \
    int FUNCTION PARAMETERS                                                                        \
    {                                                                                              \
        static int(*real) PARAMETERS;                                                              \
        int result = -1, number = 0, fault = COUNTS ? next(CALL, &number) : NONE;                  \
        va_list list;                                                                              \
        TYPE argument;                                                                             \
        va_start(list, LAST);                                                                      \
        argument = va_arg(list, TYPE);                                                             \
        va_end(list);                                                                              \
        if (!real)                                                                                 \
            real = dlsym(RTLD_NEXT, #FUNCTION);                                                    \
        if (fault <= NONE)                                                                         \
            result = real ARGUMENTS;                                                               \
        else                                                                                       \
            errno = fault;                                                                         \
        finish(result < 0, errno, number);                                                         \
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
