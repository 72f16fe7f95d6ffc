/* What libowfat's own iob_send does with the batches that are sent with iobatch:
 *
 *   owfat buffers COUNT ROUNDS          CPU microseconds for each batch of COUNT 200-byte buffers
 *   owfat file BYTES ROUNDS             the same for a 200-byte buffer and a file of BYTES
 *   owfat segs HEADER PATH TRAILER      TCP data segments of HEADER bytes, a file and TRAILER bytes,
 *                                       with an MSS of 1460
 *   owfat reader                        prints a port of 127.0.0.1, and drops what comes there: the
 *                                       same reader for the programs that this one is measured with
 *
 * Compile with: cc -O2 -o owfat owfat.c -lowfat    (Debian: libowfat-dev)
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <iob.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void need(int ok, const char *what) {
  if (!ok) {
    perror(what);
    exit(1);
  }
}

/* The sender has processor 0 and the reader 1: what a send costs depends on where its reader runs.
 * Where there is no processor 1, they share. */
static void pin(int processor) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(processor, &set);
  sched_setaffinity(0, sizeof set, &set);
}

static int listen_on(struct sockaddr_in *address, int maxseg) {
  socklen_t size = sizeof *address;
  int listener = socket(AF_INET, SOCK_STREAM, 0);
  address->sin_family = AF_INET;
  address->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (maxseg) setsockopt(listener, IPPROTO_TCP, TCP_MAXSEG, &maxseg, sizeof maxseg);
  need(!bind(listener, (void *)address, size), "bind");
  need(!listen(listener, 1), "listen");
  need(!getsockname(listener, (void *)address, &size), "getsockname");
  return listener;
}

static void drop_all(int peer) {
  static char drop[1 << 20];
  need(peer >= 0, "accept");
  pin(1);
  while (read(peer, drop, sizeof drop) > 0);
}

/* Connect to a child process that reads and drops everything. */
static int connect_to_reader(int maxseg) {
  struct sockaddr_in address = {0};
  int listener = listen_on(&address, maxseg), sock = socket(AF_INET, SOCK_STREAM, 0);
  need(!connect(sock, (void *)&address, sizeof address), "connect");
  pid_t child = fork();
  need(child >= 0, "fork");
  if (!child) {
    close(sock);
    drop_all(accept(listener, 0, 0));
    _exit(0);
  }
  close(listener);
  pin(0);
  return sock;
}

static int make_file(long bytes) {
  char path[] = "/tmp/owfatXXXXXX", *content = malloc(bytes + 1);
  int fd = mkstemp(path);
  need(fd >= 0 && content, "mkstemp");
  unlink(path);
  memset(content, 'x', bytes);
  need(write(fd, content, bytes) == bytes, "write");
  free(content);
  return fd;
}

static void send_all(int sock, io_batch *batch) {
  int64 sent;
  while ((sent = iob_send(sock, batch)) != 0) need(sent != -3, "iob_send");
}

int main(int argc, char **argv) {
  if (argc == 2 && !strcmp(argv[1], "reader")) {
    struct sockaddr_in address = {0};
    int listener = listen_on(&address, 0);
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    drop_all(accept(listener, 0, 0));
    return 0;
  }
  if (argc == 5 && !strcmp(argv[1], "segs")) {
    long header = atol(argv[2]), trailer = atol(argv[4]);
    int file = open(argv[3], O_RDONLY);
    struct stat status;
    need(file >= 0 && !fstat(file, &status), argv[3]);
    int on = 1, sock = connect_to_reader(1460);
    setsockopt(sock, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    io_batch *batch = iob_new(3);
    if (header) iob_addbuf(batch, calloc(1, header), header);
    iob_addfile(batch, file, 0, status.st_size);
    if (trailer) iob_addbuf(batch, calloc(1, trailer), trailer);
    io_fd(sock);
    send_all(sock, batch);
    /* Its cork may still hold the last frame: what counts is what the peer gets. */
    shutdown(sock, SHUT_WR);
    wait(0);
    struct tcp_info info;
    socklen_t size = sizeof info;
    need(!getsockopt(sock, IPPROTO_TCP, TCP_INFO, &info, &size), "TCP_INFO");
    printf("%u\n", info.tcpi_data_segs_out);
    return 0;
  }
  if (argc != 4 || (strcmp(argv[1], "buffers") && strcmp(argv[1], "file"))) {
    fputs("usage: owfat buffers COUNT ROUNDS | file BYTES ROUNDS | segs HEADER PATH TRAILER | reader\n",
          stderr);
    return 2;
  }
  long count = atol(argv[2]), rounds = atol(argv[3]);
  int sock = connect_to_reader(0), file = strcmp(argv[1], "file") ? -1 : make_file(count);
  char buffer[200];
  struct timespec start, end;
  memset(buffer, 'h', sizeof buffer);
  io_fd(sock);
  io_batch *batch = iob_new(10);
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &start);
  for (long i = 0; i < rounds; i++) {
    for (long k = 0; k < (file < 0 ? count : 1); k++) iob_addbuf(batch, buffer, sizeof buffer);
    if (file >= 0) iob_addfile(batch, file, 0, count);
    send_all(sock, batch);
  }
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &end);
  printf("%.3f\n",
         ((end.tv_sec - start.tv_sec) * 1e9 + (end.tv_nsec - start.tv_nsec)) / 1e3 / rounds);
  return 0;
}
