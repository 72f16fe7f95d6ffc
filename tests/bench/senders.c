/* The C methods to send a response. Each is a separate program:
 *
 *   cc -O2 -o by-hand senders.c
 *   cc -O2 -o libowfat -DOWFAT senders.c -lowfat            (Debian: libowfat-dev)
 *   cc -O2 -o libevent -DLIBEVENT=0 senders.c -levent_core  (Debian: libevent-dev)
 *
 * LIBEVENT is a combination of EVBUF_FS_ flags: with EVBUF_FS_DISABLE_SENDFILE libevent maps the
 * file.
 *
 * A program reads jobs from standard input, one per line:
 *
 *   PORT NODELAY ROUNDS PATH HEAD OFFSET COUNT [HEAD OFFSET COUNT ...]
 *
 * For each job it connects to this port of 127.0.0.1, sets TCP_NODELAY to NODELAY (0 or 1), and
 * sends a response ROUNDS times: for each triple a buffer of HEAD bytes and COUNT bytes of the file
 * from OFFSET. Then it shuts down its side of the connection, so that the kernel sends all bytes
 * that it holds back, reads the peer's answer to the end, and writes a line
 *
 *   MICROSECONDS SEGMENTS ANSWER
 *
 * with the CPU time per response, the number of data segments of all responses, and the answer.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

struct part {
  size_t head;
  off_t offset;
  size_t count;
};

static char heads[4096]; /* the bytes of all buffers */

static void need(int ok, const char *what) {
  if (!ok) {
    perror(what);
    exit(1);
  }
}

/* After a failed send: wait until the socket is writable if errno is EAGAIN, else exit. */
static void wait_for_room(int sock) {
  struct pollfd room = {sock, POLLOUT, 0};
  need(errno == EAGAIN, "send");
  need(poll(&room, 1, -1) == 1, "poll");
}

#if defined OWFAT

#include <iob.h>

static io_batch *batch;

static void begin(int sock, int file) {
  (void)file;
  io_fd(sock);
  if (!batch) batch = iob_new(10);
}

static void respond(int sock, int file, const struct part *part, const struct part *end) {
  int64 sent;
  for (; part < end; part++) {
    if (part->head) iob_addbuf(batch, heads, part->head);
    if (part->count) iob_addfile(batch, file, part->offset, part->count);
  }
  while ((sent = iob_send(sock, batch)) != 0) {
    need(sent != -3, "iob_send");
    if (sent < 0) wait_for_room(sock);
  }
}

static void finish(void) {}

#elif defined LIBEVENT

#include <event2/buffer.h>

static struct evbuffer *out;
static struct evbuffer_file_segment *segment;

/* As in a server with a cache of open files, all responses refer to one segment for the file.
 * EVBUFFER_FLAG_DRAINS_TO_FD, which bufferevents set, is required for sendfile. */
static void begin(int sock, int file) {
  (void)sock;
  out = evbuffer_new();
  evbuffer_set_flags(out, EVBUFFER_FLAG_DRAINS_TO_FD);
  segment = evbuffer_file_segment_new(file, 0, -1, LIBEVENT);
  need(segment != 0, "evbuffer_file_segment_new");
}

static void respond(int sock, int file, const struct part *part, const struct part *end) {
  (void)file;
  for (; part < end; part++) {
    evbuffer_add_reference(out, heads, part->head, 0, 0);
    if (part->count) evbuffer_add_file_segment(out, segment, part->offset, part->count);
  }
  while (evbuffer_get_length(out))
    if (evbuffer_write(out, sock) < 0) wait_for_room(sock);
}

static void finish(void) {
  evbuffer_file_segment_free(segment);
  evbuffer_free(out);
}

#else /* by hand, the lower bound: small parts copied into one send, large ranges by sendfile */

#define COPY_LIMIT 32768 /* up to this size pread is cheaper than sendfile */

static char copies[1 << 20]; /* copying a header costs less than a vector of buffers */

static void begin(int sock, int file) { (void)sock, (void)file; }

static void send_buffer(int sock, const char *data, size_t count, int flags) {
  while (count) {
    ssize_t sent = send(sock, data, count, flags);
    if (sent < 0)
      wait_for_room(sock);
    else
      data += sent, count -= sent;
  }
}

static void send_range(int sock, int file, off_t offset, size_t count) {
  while (count) {
    ssize_t sent = sendfile(sock, file, &offset, count);
    if (sent < 0)
      wait_for_room(sock);
    else
      count -= sent;
  }
}

static void respond(int sock, int file, const struct part *part, const struct part *end) {
  size_t used = 0;
  for (; part < end; part++) {
    need(used + part->head + COPY_LIMIT <= sizeof copies, "response too long");
    memcpy(copies + used, heads, part->head);
    used += part->head;
    if (part->count > COPY_LIMIT) {
      send_buffer(sock, copies, used, MSG_NOSIGNAL | MSG_MORE);
      send_range(sock, file, part->offset, part->count);
      used = 0;
    } else if (part->count) {
      need(pread(file, copies + used, part->count, part->offset) == (ssize_t)part->count, "pread");
      used += part->count;
    }
  }
  send_buffer(sock, copies, used, MSG_NOSIGNAL);
}

static void finish(void) {}

#endif

static int connect_to(int port) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
  int sock = socket(AF_INET, SOCK_STREAM, 0);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  /* Set before connect(): a connection that BBR has paced once stays paced. */
  need(!setsockopt(sock, IPPROTO_TCP, TCP_CONGESTION, "reno", 4), "TCP_CONGESTION");
  need(!connect(sock, (void *)&address, sizeof address), "connect");
  return sock;
}

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return time.tv_sec * 1e6 + time.tv_nsec / 1e3;
}

static void perform(char *line) {
  int sock = connect_to(atoi(strtok(line, " "))), nodelay = atoi(strtok(0, " "));
  long rounds = atol(strtok(0, " "));
  int file = open(strtok(0, " "), O_RDONLY);
  need(file >= 0, "open");
  struct part parts[256], *end = parts;
  for (char *head; (head = strtok(0, " ")); end++) {
    need(end < parts + 256, "too many parts");
    end->head = atol(head);
    end->offset = atol(strtok(0, " "));
    end->count = atol(strtok(0, " "));
    need(end->head <= sizeof heads, "buffer too long");
  }
  fcntl(sock, F_SETFL, O_NONBLOCK);
  setsockopt(sock, IPPROTO_TCP, TCP_NODELAY, &nodelay, sizeof nodelay);

  begin(sock, file);
  double start = now();
  for (long i = 0; i < rounds; i++) respond(sock, file, parts, end);
  double spent = now() - start;
  finish();

  char answer[100];
  ssize_t got;
  struct tcp_info info;
  socklen_t size = sizeof info;
  fcntl(sock, F_SETFL, 0);
  shutdown(sock, SHUT_WR);
  got = recv(sock, answer, sizeof answer, MSG_WAITALL);
  need(!getsockopt(sock, IPPROTO_TCP, TCP_INFO, &info, &size), "TCP_INFO");
  printf("%.3f %u %.*s\n", spent / rounds, info.tcpi_data_segs_out, got < 0 ? 0 : (int)got, answer);
  fflush(stdout);
  close(file);
  close(sock);
}

int main(void) {
  char *line = 0;
  size_t size = 0;
  memset(heads, 'h', sizeof heads);
  while (getline(&line, &size, stdin) > 0) perform(line);
  return 0;
}
