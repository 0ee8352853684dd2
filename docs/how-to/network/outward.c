/* Gives an unchanged program in an enclave the network that its parent allows, over vsock:
 *
 *     outward [-p PORT]... [-i VSOCK_PORT=TCP_PORT]... -- PROGRAM [ARGUMENT]...
 *
 * Outwards: names are answered by a DNS server in here, each with an address of its own in 198.18.0.0/15 (RFC 2544:
 * for tests, so nobody's). All of these addresses are this machine's, by one route, so that connections to them
 * arrive here, at the ports given by -p (80 and 443 without one). What the program meant is the name that the address
 * stands for: it is asked for at the HTTP proxy (CONNECT) at port 3128 of the parent, which knows what is allowed.
 *
 * Inwards: connections to a vsock port of the enclave lead to a TCP port of the program at 127.0.0.1 (-i).
 *
 * It then becomes PROGRAM. A process that it leaves behind serves, with a process more for each connection. */
#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/rtnetlink.h>
#include <linux/vm_sockets.h>
#include <net/if.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
    PARENT = 3,
    PROXY_PORT = 3128,
    FIRST = 0xc6120000, /* 198.18.0.0 */
    PREFIX_BITS = 15,
    NAMES_MAX = 4096, /* more names are answered with a failure, so that memory is bounded */
    NAME_MAX_BYTES = 253,
    PORTS_MAX = 32,
    CHUNK = 65536,
};

static char names[NAMES_MAX][NAME_MAX_BYTES + 1];
static unsigned names_count;

/* Where connections come in, and where they go if that is a port of the program; 0: to the proxy. */
static struct { int listener; uint16_t to; } doors[PORTS_MAX];
static unsigned doors_count;

static void die(const char *what)
{
    fprintf(stderr, "outward: %s: %s\n", what, strerror(errno));
    exit(1);
}

/* The network of this machine: the loopback interface, and a route by which the range is this machine's. */

static void bring_up_loopback(void)
{
    struct ifreq request = {.ifr_name = "lo"};
    int any = socket(AF_INET, SOCK_DGRAM, 0);

    if (any < 0 || ioctl(any, SIOCGIFFLAGS, &request) < 0)
        die("loopback");
    request.ifr_flags |= IFF_UP;
    if (ioctl(any, SIOCSIFFLAGS, &request) < 0)
        die("loopback");
    close(any);
}

/* What `ip route add local 198.18.0.0/15 dev lo` does. */
static void make_range_local(void)
{
    struct {
        struct nlmsghdr header;
        struct rtmsg route;
        struct rtattr to_type;
        uint32_t to;
        struct rtattr by_type;
        uint32_t by;
    } request = {
        .header = {.nlmsg_len = sizeof request, .nlmsg_type = RTM_NEWROUTE,
            .nlmsg_flags = NLM_F_REQUEST | NLM_F_CREATE | NLM_F_REPLACE | NLM_F_ACK},
        .route = {.rtm_family = AF_INET, .rtm_dst_len = PREFIX_BITS, .rtm_table = RT_TABLE_LOCAL,
            .rtm_protocol = RTPROT_BOOT, .rtm_scope = RT_SCOPE_HOST, .rtm_type = RTN_LOCAL},
        .to_type = {.rta_len = RTA_LENGTH(4), .rta_type = RTA_DST}, .to = htonl(FIRST),
        .by_type = {.rta_len = RTA_LENGTH(4), .rta_type = RTA_OIF}, .by = if_nametoindex("lo"),
    };
    struct { struct nlmsghdr header; struct nlmsgerr error; } answer;
    int netlink = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);

    if (netlink < 0 || send(netlink, &request, sizeof request, 0) < 0)
        die("route");
    if (recv(netlink, &answer, sizeof answer, 0) < (ssize_t)sizeof answer || answer.error.error != 0) {
        errno = -answer.error.error;
        die("route");
    }
    close(netlink);
}

static void use_our_dns(void)
{
    static const char line[] = "nameserver 127.0.0.1\n";
    int file;

    mkdir("/etc", 0755);
    file = open("/etc/resolv.conf", O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (file < 0 || write(file, line, sizeof line - 1) < 0)
        die("/etc/resolv.conf");
    close(file);
}

/* DNS (RFC 1035): an address for every name. */

/* The question's name, in lower case with dots; returns the byte behind it, or NULL where there is no name. */
static const uint8_t *read_name(const uint8_t *at, const uint8_t *end, char *name)
{
    size_t length = 0;

    while (at < end && *at != 0) {
        size_t label = *at++;

        if (label > 63 || label > (size_t)(end - at) || length + label + 1 > NAME_MAX_BYTES)
            return NULL;
        for (; label > 0; label--, at++) {
            if (!isalnum(*at) && *at != '-' && *at != '_')
                return NULL; /* it would be put into a request of HTTP */
            name[length++] = (char)tolower(*at);
        }
        name[length++] = '.';
    }
    if (at == end || length == 0)
        return NULL;
    name[length - 1] = 0;
    return at + 1;
}

static uint32_t address_of(const char *name)
{
    for (unsigned i = 0; i < names_count; i++)
        if (strcmp(names[i], name) == 0)
            return FIRST + 1 + i;
    if (names_count == NAMES_MAX)
        return 0;
    strcpy(names[names_count], name);
    return FIRST + 1 + names_count++;
}

static void answer_dns(int socket)
{
    enum { HEADER = 12, TYPE_A = 1, FAILURE = 2, TTL_S = 60 };
    struct sockaddr_in client;
    socklen_t size = sizeof client;
    uint8_t packet[512 + 16];
    char name[NAME_MAX_BYTES + 1];
    ssize_t length = recvfrom(socket, packet, 512, 0, (struct sockaddr *)&client, &size);
    const uint8_t *behind;
    uint8_t *end;
    uint32_t address;

    /* A query (the first bit is 0) of opcode 0, with one question. */
    if (length < HEADER || packet[2] & 0xf8 || packet[4] != 0 || packet[5] != 1)
        return;
    behind = read_name(packet + HEADER, packet + length, name);
    if (behind == NULL || packet + length - behind < 4)
        return;
    end = packet + (behind - packet) + 4;
    packet[2] |= 0x80, packet[3] = 0x80; /* an answer; recursion is available */
    memset(packet + 6, 0, 6);
    if (behind[0] == 0 && behind[1] == TYPE_A) {
        address = address_of(name);
        if (address == 0) {
            packet[3] |= FAILURE;
        } else {
            uint8_t record[] = {0xc0, HEADER, 0, TYPE_A, 0, 1, 0, 0, 0, TTL_S, 0, 4,
                address >> 24, address >> 16, address >> 8, address};

            memcpy(end, record, sizeof record);
            end += sizeof record;
            packet[7] = 1;
        }
    }
    sendto(socket, packet, end - packet, 0, (struct sockaddr *)&client, size);
}

/* Connections, each in a process of its own. */

static int move(int from, int to)
{
    static char chunk[CHUNK];
    ssize_t length = read(from, chunk, sizeof chunk), done = 0;

    if (length <= 0) {
        shutdown(to, SHUT_WR);
        return 0;
    }
    while (done < length) {
        ssize_t written = write(to, chunk + done, length - done);

        if (written <= 0)
            exit(1);
        done += written;
    }
    return 1;
}

/* Move bytes both ways until both sides have ended; each side's end is passed on. */
static void join(int one, int other)
{
    struct pollfd ends[] = {{.fd = one, .events = POLLIN}, {.fd = other, .events = POLLIN}};

    while (ends[0].fd >= 0 || ends[1].fd >= 0) {
        if (poll(ends, 2, -1) < 0)
            exit(1);
        for (int i = 0; i < 2; i++)
            if (ends[i].revents && !move(i ? other : one, i ? one : other))
                ends[i].fd = -1; /* poll passes it over from now on */
    }
}

static int connected_to_proxy(const char *name, unsigned port)
{
    struct sockaddr_vm proxy = {.svm_family = AF_VSOCK, .svm_cid = PARENT, .svm_port = PROXY_PORT};
    char text[1024];
    size_t length = 0;
    int parent = socket(AF_VSOCK, SOCK_STREAM, 0);

    if (connect(parent, (struct sockaddr *)&proxy, sizeof proxy) < 0) {
        fprintf(stderr, "outward: no proxy at port %d of the parent: %s\n", PROXY_PORT, strerror(errno));
        return -1;
    }
    dprintf(parent, "CONNECT %s:%u HTTP/1.1\r\nHost: %s:%u\r\n\r\n", name, port, name, port);
    /* A byte at a time, because what follows the empty line is the server's. */
    while (length < sizeof text - 1 && read(parent, text + length, 1) == 1) {
        length++;
        if (length >= 4 && memcmp(text + length - 4, "\r\n\r\n", 4) == 0)
            break;
    }
    text[length] = 0;
    if (strncmp(text, "HTTP/1.1 200", 12) == 0)
        return parent;
    text[strcspn(text, "\r\n")] = 0;
    fprintf(stderr, "outward: %s:%u: %s\n", name, port, length ? text : "the proxy has no answer");
    return -1;
}

static void lead_outwards(int client)
{
    struct linger at_once = {.l_onoff = 1};
    struct sockaddr_in meant;
    socklen_t size = sizeof meant;
    uint32_t index;
    int server = -1;

    getsockname(client, (struct sockaddr *)&meant, &size);
    index = ntohl(meant.sin_addr.s_addr) - FIRST - 1;
    if (index < names_count)
        server = connected_to_proxy(names[index], ntohs(meant.sin_port));
    if (server < 0) {
        /* The program gets "connection reset", and not the end of an answer. */
        setsockopt(client, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
        return;
    }
    join(client, server);
}

static void lead_inwards(int parent, uint16_t port)
{
    struct sockaddr_in program = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr = {htonl(INADDR_LOOPBACK)},
    };
    int server = socket(AF_INET, SOCK_STREAM, 0);

    if (connect(server, (struct sockaddr *)&program, sizeof program) == 0)
        join(parent, server);
}

static void serve(int dns)
{
    struct pollfd waiting[PORTS_MAX + 1] = {{.fd = dns, .events = POLLIN}};

    for (unsigned i = 0; i < doors_count; i++)
        waiting[i + 1] = (struct pollfd){.fd = doors[i].listener, .events = POLLIN};
    for (;;) {
        poll(waiting, doors_count + 1, -1);
        if (waiting[0].revents)
            answer_dns(dns);
        for (unsigned i = 0; i < doors_count; i++) {
            int client = waiting[i + 1].revents ? accept(doors[i].listener, NULL, NULL) : -1;

            if (client >= 0 && fork() == 0) {
                doors[i].to ? lead_inwards(client, doors[i].to) : lead_outwards(client);
                exit(0);
            }
            close(client);
        }
    }
}

/* The command line. */

static void open_door(int family, const void *address, size_t size, uint16_t to)
{
    int yes = 1, listener = socket(family, SOCK_STREAM, 0);

    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (doors_count == PORTS_MAX || bind(listener, address, size) < 0 || listen(listener, 128) < 0)
        die("cannot listen");
    doors[doors_count].listener = listener;
    doors[doors_count++].to = to;
}

static void open_outwards(unsigned port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};

    open_door(AF_INET, &address, sizeof address, 0);
}

static void open_inwards(const char *text)
{
    struct sockaddr_vm address = {.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY};
    unsigned from, to;

    if (sscanf(text, "%u=%u", &from, &to) != 2 || to == 0 || to > 65535) {
        fprintf(stderr, "outward: %s is not VSOCK_PORT=TCP_PORT\n", text);
        exit(2);
    }
    address.svm_port = from;
    open_door(AF_VSOCK, &address, sizeof address, to);
}

int main(int count, char **arguments)
{
    struct sockaddr_in here = {
        .sin_family = AF_INET, .sin_port = htons(53), .sin_addr = {htonl(INADDR_LOOPBACK)},
    };
    int option, outwards = 0, dns = socket(AF_INET, SOCK_DGRAM, 0);

    bring_up_loopback();
    make_range_local();
    while ((option = getopt(count, arguments, "p:i:")) != -1) {
        if (option == 'p')
            open_outwards(atoi(optarg)), outwards = 1;
        else if (option == 'i')
            open_inwards(optarg);
        else
            return 2;
    }
    if (optind == count) {
        fprintf(stderr, "usage: outward [-p PORT]... [-i VSOCK_PORT=TCP_PORT]... -- PROGRAM [ARGUMENT]...\n");
        return 2;
    }
    if (!outwards)
        open_outwards(80), open_outwards(443);
    if (bind(dns, (struct sockaddr *)&here, sizeof here) < 0)
        die("cannot listen at the port of DNS");
    use_our_dns();
    /* Forked twice, so that what serves is no child of the program's, which might wait for it. */
    if (fork() == 0) {
        if (fork() != 0)
            _exit(0);
        signal(SIGCHLD, SIG_IGN); /* nobody asks how a connection's process ended */
        signal(SIGPIPE, SIG_IGN);
        serve(dns);
    }
    wait(NULL);
    close(dns);
    for (unsigned i = 0; i < doors_count; i++)
        close(doors[i].listener);
    execvp(arguments[optind], arguments + optind);
    die(arguments[optind]);
}
