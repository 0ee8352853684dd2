/* A guest's vsock driver and the host's programs, as a load for a vhost-user-vsock back-end.
 *
 * The handshake is done by the Python that starts this; here are only the rings, in a memory file at fixed
 * places, and sockets. One thread is the guest: Linux's descriptor layout (one receive descriptor of 44 + N
 * bytes, a header and a data descriptor to transmit) and Linux's rules for credit. One thread is the host's
 * programs on the unix sockets. Numbers come out as one line of JSON.
 *
 * usage: load MEMORY_FD KICK_RX CALL_RX KICK_TX CALL_TX UDS_PATH MODE SIZE CONNECTIONS SECONDS RX_BUFFER
 *
 * In the modes sibling-tx and sibling-rr the other end is another guest, for which a second load runs in the
 * mode sibling-sink or sibling-echo.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { QUEUE = 128, RX = 0, TX = 1, SLOTS = QUEUE / 2, CONNECTIONS_MAX = 8192 };
enum { RING_STRIDE = 0x10000, AVAILABLE = 0x2000, USED = 0x4000, RX_BUFFERS = 0x100000, RX_STRIDE = 0x11000,
       TX_BUFFERS = 0x1000000, TX_STRIDE = 0x11000 };
enum { REQUEST = 1, RESPONSE, RST, SHUTDOWN, RW, CREDIT_UPDATE, CREDIT_REQUEST };
enum { HOST_CID = 2, PORT = 5000, BUFFER_BYTES = 262144, LOW_CREDIT = 65536 };

struct descriptor { uint64_t address; uint32_t length; uint16_t flags, next; };
struct available { uint16_t flags, index, ring[QUEUE], used_event; };
struct used { uint16_t flags, index; struct { uint32_t id, length; } ring[QUEUE]; uint16_t available_event; };
struct header {
    uint64_t source_cid, target_cid;
    uint32_t source_port, target_port, length;
    uint16_t type, operation;
    uint32_t flags, buf_alloc, fwd_cnt;
} __attribute__((packed));

struct ring {
    volatile struct descriptor *descriptors;
    volatile struct available *available;
    volatile struct used *used;
    uint16_t next, seen;
    int kick, call;
};

struct connection {
    uint32_t local, remote, sent, forwarded, told, peer_buffer, peer_forwarded;
    int established, closing;
};

static uint8_t *memory;
static struct ring rings[2];
static struct connection connections[CONNECTIONS_MAX];
static int connections_count;
static int free_slots[SLOTS], free_count;
static uint32_t rx_buffer;
static uint64_t own_cid = 16, other_cid = HOST_CID;
static const char *uds_path, *mode;
static uint32_t size;
static int wanted;
static atomic_int stop_host, host_ready;
static atomic_ulong host_bytes, host_events;
static uint64_t guest_bytes, guest_events, rx_packets;
static int stop_event;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static void die(const char *what)
{
    fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
    exit(1);
}

/* ---- the guest ---- */

static void setup_ring(int index, int kick, int call)
{
    uint8_t *base = memory + index * RING_STRIDE;
    rings[index] = (struct ring){ (void *)base, (void *)(base + AVAILABLE), (void *)(base + USED), 0, 0, kick, call };
}

static void kick(struct ring *ring, uint16_t old)
{
    atomic_thread_fence(memory_order_seq_cst);
    uint16_t new = ring->available->index, event = ring->used->available_event;
    if ((uint16_t)(new - event - 1) < (uint16_t)(new - old)) {
        uint64_t one = 1;
        if (write(ring->kick, &one, 8) != 8) die("kick");
    }
}

static void offer(struct ring *ring, uint16_t head)
{
    ring->available->ring[ring->next++ % QUEUE] = head;
}

static void publish(struct ring *ring)
{
    uint16_t old = ring->available->index;
    if (old == ring->next) return;
    atomic_thread_fence(memory_order_release);
    ring->available->index = ring->next;
    kick(ring, old);
}

static void setup_buffers(void)
{
    for (int i = 0; i < QUEUE; i++) {
        rings[RX].descriptors[i] = (struct descriptor){ RX_BUFFERS + i * RX_STRIDE, sizeof(struct header) + rx_buffer, 2, 0 };
        offer(&rings[RX], i);
    }
    for (int i = 0; i < SLOTS; i++) {
        uint64_t place = TX_BUFFERS + i * TX_STRIDE;
        rings[TX].descriptors[2 * i] = (struct descriptor){ place, sizeof(struct header), 0, 0 };
        rings[TX].descriptors[2 * i + 1] = (struct descriptor){ place + 64, 0, 0, 0 };
        free_slots[free_count++] = i;
    }
    publish(&rings[RX]);
}

static void reap(void)
{
    struct ring *ring = &rings[TX];
    uint16_t index = ring->used->index;
    atomic_thread_fence(memory_order_acquire);
    for (; ring->seen != index; ring->seen++)
        free_slots[free_count++] = ring->used->ring[ring->seen % QUEUE].id / 2;
}

/* Control packets may take the last slots; data leaves some for them. */
static int transmit(struct connection *c, int operation, uint32_t length, uint32_t flags)
{
    if (!free_count) {
        publish(&rings[TX]);
        while (reap(), !free_count) sched_yield();
    }
    int slot = free_slots[--free_count];
    struct header *h = (void *)(memory + TX_BUFFERS + slot * TX_STRIDE);
    *h = (struct header){ own_cid, other_cid, c->local, c->remote, length, 1, operation, flags, BUFFER_BYTES, c->forwarded };
    c->told = c->forwarded;
    c->sent += length;
    rings[TX].descriptors[2 * slot].flags = length ? 1 : 0;
    rings[TX].descriptors[2 * slot].next = 2 * slot + 1;
    rings[TX].descriptors[2 * slot + 1].length = length;
    offer(&rings[TX], 2 * slot);
    return slot;
}

static uint32_t credit(struct connection *c)
{
    int64_t window = c->peer_buffer < BUFFER_BYTES ? c->peer_buffer : BUFFER_BYTES;
    int64_t left = window - (uint32_t)(c->sent - c->peer_forwarded);
    return left < 0 ? 0 : left;
}

/* Ports are given out in order, so that a connection is found without a search. */
static uint32_t next_port = PORT + 1;
static struct connection *by_port[65536];

static struct connection *open_connection(struct connection *c)
{
    memset(c, 0, sizeof *c);
    c->local = next_port++;
    if (next_port > 60000) next_port = PORT + 1;
    c->remote = PORT;
    by_port[c->local] = c;
    transmit(c, REQUEST, 0, 0);
    return c;
}

static struct connection *by_host_port(uint32_t port)
{
    for (int i = 0; i < connections_count; i++)
        if (connections[i].remote == port && connections[i].established) return &connections[i];
    return NULL;
}

static int is(const char *name) { return !strcmp(mode, name); }

static void receive(struct header *h)
{
    struct connection *c;
    rx_packets++;
    if (h->operation == REQUEST) {
        if (connections_count == CONNECTIONS_MAX || is("conn-host")) c = &connections[0];
        else c = &connections[connections_count++];
        memset(c, 0, sizeof *c);
        c->local = h->target_port, c->remote = h->source_port, c->established = 1;
        c->peer_buffer = h->buf_alloc, c->peer_forwarded = h->fwd_cnt;
        transmit(c, RESPONSE, 0, 0);
        return;
    }
    c = h->target_port == PORT ? (is("conn-host") ? &connections[0] : by_host_port(h->source_port))
                               : by_port[h->target_port & 0xffff];
    if (!c) return;
    c->peer_buffer = h->buf_alloc, c->peer_forwarded = h->fwd_cnt;
    switch (h->operation) {
    case RESPONSE:
        c->established = 1;
        if (is("sibling-rr")) transmit(c, RW, size, 0);
        if (is("conn-guest")) transmit(c, SHUTDOWN, 0, 3), c->closing = 1;
        break;
    case RST:
        if (!c->closing && !is("conn-guest")) { fprintf(stderr, "load: connection was reset\n"); exit(1); }
        by_port[c->local & 0xffff] = NULL;
        guest_events++;
        c->established = c->closing = 0;
        if (is("conn-guest")) open_connection(c);
        break;
    case SHUTDOWN:
        if (is("conn-host")) { /* the connection in `c` may be a newer one: answer what is asked */
            struct connection answer = { .local = h->target_port, .remote = h->source_port };
            transmit(&answer, RST, 0, 0);
            guest_events++;
        } else {
            c->closing = 1;
            transmit(c, RST, 0, 0);
        }
        break;
    case RW:
        guest_bytes += h->length;
        c->forwarded += h->length;
        if (is("rr") || is("sibling-rr") || is("sibling-echo")) {
            guest_events++;
            transmit(c, RW, h->length, 0);
        } else if (BUFFER_BYTES - (c->forwarded - c->told) < LOW_CREDIT)
            transmit(c, CREDIT_UPDATE, 0, 0);
        break;
    case CREDIT_REQUEST:
        transmit(c, CREDIT_UPDATE, 0, 0);
        break;
    }
}

static int take(void)
{
    struct ring *ring = &rings[RX];
    uint16_t index = ring->used->index, first = ring->seen;
    atomic_thread_fence(memory_order_acquire);
    for (; ring->seen != index; ring->seen++) {
        uint16_t head = ring->used->ring[ring->seen % QUEUE].id;
        struct header *h = (void *)(memory + RX_BUFFERS + head * RX_STRIDE);
        if (ring->used->ring[ring->seen % QUEUE].length != sizeof *h + h->length) {
            fprintf(stderr, "load: used length and packet length differ\n");
            exit(1);
        }
        receive(h);
        offer(ring, head);
    }
    return first != index;
}

/* Interleaved, as programs that all write would be; a few slots stay for control packets. */
static int send_data(void)
{
    int sent = 0, progress = 1;
    while (progress && free_count > 8) {
        progress = 0;
        for (int i = 0; i < connections_count && free_count > 8; i++) {
            struct connection *c = &connections[i];
            uint32_t left = credit(c), length = size < left ? size : left;
            if (!c->established || !length || (length < size && size <= 4096)) continue;
            transmit(c, RW, length, 0);
            guest_bytes += length;
            progress = sent = 1;
        }
    }
    return sent;
}

static void wait_for_interrupt(double deadline)
{
    struct pollfd fds[] = { { rings[RX].call, POLLIN, 0 }, { rings[TX].call, POLLIN, 0 } };
    rings[RX].available->used_event = rings[RX].seen;
    rings[TX].available->used_event = rings[TX].seen;
    atomic_thread_fence(memory_order_seq_cst);
    if (rings[RX].used->index != rings[RX].seen || rings[TX].used->index != rings[TX].seen) return;
    double left = deadline - now();
    if (left > 0) poll(fds, 2, left * 1000 + 1);
    uint64_t count;
    for (int i = 0; i < 2; i++)
        if (read(fds[i].fd, &count, 8) < 0 && errno != EAGAIN) die("call");
}

static void turn(int sending, double deadline)
{
    reap();
    int progress = take();
    if (sending) progress |= send_data();
    publish(&rings[TX]);
    publish(&rings[RX]);
    if (!progress) wait_for_interrupt(deadline);
}

/* A guest that another one connects to, until our standard input is closed. */
static void serve_sibling(void)
{
    printf("{\"ready\": true}\n");
    fflush(stdout);
    for (;;) {
        struct pollfd end = { 0, POLLIN, 0 };
        if (poll(&end, 1, 0)) exit(0);
        turn(0, now() + 0.05);
    }
}

/* ---- the host's programs ---- */

static int unix_socket(struct sockaddr_un *address, const char *suffix)
{
    *address = (struct sockaddr_un){ .sun_family = AF_UNIX };
    snprintf(address->sun_path, sizeof address->sun_path, "%s%s", uds_path, suffix);
    return socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
}

static int dial(void)
{
    struct sockaddr_un address;
    char line[64];
    int fd = unix_socket(&address, "");
    if (connect(fd, (void *)&address, sizeof address)) die("connect");
    int length = snprintf(line, sizeof line, "CONNECT %d\n", PORT);
    if (write(fd, line, length) != length) die("CONNECT");
    int got = 0;
    do {
        int n = read(fd, line + got, 1);
        if (n <= 0) die("OK");
    } while (line[got++] != '\n');
    return fd;
}

/* Accepts, and reads whatever comes. */
static void *sink(void *unused)
{
    struct sockaddr_un address;
    static char buffer[262144];
    int listener = unix_socket(&address, "_5000"), poller = epoll_create1(0);
    unlink(address.sun_path);
    if (bind(listener, (void *)&address, sizeof address) || listen(listener, 4096)) die("listen");
    struct epoll_event event = { EPOLLIN, { .fd = listener } }, events[64];
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &event);
    event.data.fd = stop_event;
    epoll_ctl(poller, EPOLL_CTL_ADD, stop_event, &event);
    host_ready = 1;
    while (!stop_host) {
        int count = epoll_wait(poller, events, 64, -1);
        for (int i = 0; i < count; i++) {
            int fd = events[i].data.fd;
            if (fd == stop_event) continue;
            if (fd == listener) {
                int accepted = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
                event = (struct epoll_event){ EPOLLIN, { .fd = accepted } };
                epoll_ctl(poller, EPOLL_CTL_ADD, accepted, &event);
                continue;
            }
            ssize_t n = read(fd, buffer, sizeof buffer);
            if (n <= 0) close(fd);
            else host_bytes += n;
        }
    }
    return unused;
}

/* Writes as fast as it can on each of its connections. */
static void *source(void *unused)
{
    static char buffer[1 << 20];
    int poller = epoll_create1(0);
    struct epoll_event event, events[64];
    event = (struct epoll_event){ EPOLLIN, { .fd = stop_event } };
    epoll_ctl(poller, EPOLL_CTL_ADD, stop_event, &event);
    for (int i = 0; i < wanted; i++) {
        int fd = dial();
        fcntl(fd, F_SETFL, O_NONBLOCK);
        event = (struct epoll_event){ EPOLLOUT, { .fd = fd } };
        epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
    }
    host_ready = 1;
    while (!stop_host) {
        int count = epoll_wait(poller, events, 64, -1);
        for (int i = 0; i < count; i++) {
            if (events[i].data.fd == stop_event) continue;
            ssize_t n = write(events[i].data.fd, buffer, size);
            if (n > 0) host_bytes += n;
            else if (errno != EAGAIN) die("write");
        }
    }
    return unused;
}

static void *ping(void *unused)
{
    static char buffer[65536];
    int fd = dial();
    host_ready = 1;
    while (!stop_host) {
        if (write(fd, buffer, size) != (ssize_t)size) die("write");
        for (uint32_t got = 0; got < size;) {
            ssize_t n = read(fd, buffer, size - got);
            if (n <= 0) die("read");
            got += n;
        }
        host_events++;
    }
    return unused;
}

static void *dialler(void *unused)
{
    host_ready = 1;
    while (!stop_host) {
        close(dial());
        host_events++;
    }
    return unused;
}

static void *idle_dialler(void *unused)
{
    for (int i = 0; i < wanted; i++) dial();
    host_ready = 1;
    return unused;
}

static void nothing_to_do(void)
{
    /* Ask nothing more; the parent measures the back-end and then closes our standard input. */
    printf("{\"ready\": true}\n");
    fflush(stdout);
    for (;;) {
        struct pollfd fds[] = { { 0, POLLIN, 0 }, { rings[RX].call, POLLIN, 0 } };
        poll(fds, 2, -1);
        if (fds[0].revents) exit(0);
        turn(0, now());
    }
}

int main(int argc, char **argv)
{
    if (argc != 12) return 2;
    memory = mmap(NULL, 64 << 20, PROT_READ | PROT_WRITE, MAP_SHARED, atoi(argv[1]), 0);
    if (memory == MAP_FAILED) die("mmap");
    setup_ring(RX, atoi(argv[2]), atoi(argv[3]));
    setup_ring(TX, atoi(argv[4]), atoi(argv[5]));
    uds_path = argv[6], mode = argv[7];
    size = atoi(argv[8]), wanted = atoi(argv[9]);
    double seconds = atof(argv[10]);
    rx_buffer = atoi(argv[11]);
    stop_event = eventfd(0, EFD_CLOEXEC);
    setup_buffers();
    if (!strncmp(mode, "sibling", 7)) other_cid = 17;
    if (is("sibling-sink") || is("sibling-echo")) {
        own_cid = 17, other_cid = 16;
        serve_sibling();
    }

    int siblings = is("sibling-tx") || is("sibling-rr");
    int to_host = is("tx") || is("sibling-tx"), from_guest = to_host || is("conn-guest") || is("sibling-rr");
    void *(*program)(void *) = from_guest ? sink : is("rx") ? source : is("rr") ? ping : is("conn-host") ? dialler : idle_dialler;
    pthread_t thread;
    if (siblings) host_ready = 1;
    else if (pthread_create(&thread, NULL, program, NULL)) die("thread");
    while (from_guest && !host_ready) sched_yield();
    if (from_guest)
        for (int i = 0; i < wanted; i++) open_connection(&connections[connections_count++]);
    double patience = now() + 30;
    for (;;) {
        int established = 0;
        for (int i = 0; i < connections_count; i++) established += connections[i].established;
        if (host_ready && (is("conn-guest") || is("conn-host") || established >= wanted)) break;
        if (now() > patience) { fprintf(stderr, "load: the connections did not come up\n"); return 1; }
        turn(0, now() + 0.01);
    }
    if (is("idle")) nothing_to_do();

    double begin = now(), deadline = begin + seconds, quiet = begin;
    uint64_t before = is("tx") ? atomic_load(&host_bytes) : guest_bytes, last = 0;
    uint64_t events_before = is("conn-guest") || siblings ? guest_events : atomic_load(&host_events);
    int stalled = 0;
    for (double t = begin; t < deadline; t = now()) {
        turn(to_host, t + 0.05 < deadline ? t + 0.05 : deadline);
        uint64_t moved = host_bytes + host_events + guest_bytes + guest_events;
        if (moved != last) last = moved, quiet = t;
        else if (t - quiet > 1.0) { stalled = 1; break; }
    }
    double took = now() - begin;
    uint64_t after = is("tx") ? atomic_load(&host_bytes) : guest_bytes;
    uint64_t events_after = is("conn-guest") || siblings ? guest_events : atomic_load(&host_events);
    printf("{\"seconds\": %.6f, \"bytes\": %llu, \"events\": %llu, \"rx_packets\": %llu, \"stalled\": %s}\n", took,
           (unsigned long long)(after - before), (unsigned long long)(events_after - events_before),
           (unsigned long long)rx_packets, stalled ? "true" : "false");
    return 0;
}
