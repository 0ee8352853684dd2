/* Gives an unchanged program in an enclave a whole network, by gvproxy at vsock port 1024 of the parent:
 *
 *     tap PROGRAM [ARGUMENT]...
 *
 * Ethernet frames go to and fro between a TAP device and vsock, each with its length before it (32 bits,
 * big-endian: what QEMU speaks over sockets, and gvproxy with -listen-qemu). The addresses are gvproxy's defaults.
 * It then becomes PROGRAM, and two processes that it leaves behind move the frames. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <linux/vm_sockets.h>
#include <net/if.h>
#include <net/route.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PARENT = 3, PORT = 1024, FRAME_MAX = 65536 };
static const char ADDRESS[] = "192.168.127.2", MASK[] = "255.255.255.0", GATEWAY[] = "192.168.127.1";

static void die(const char *what)
{
    fprintf(stderr, "tap: %s: %s\n", what, strerror(errno));
    exit(1);
}

static struct sockaddr address(const char *text)
{
    struct sockaddr_in found = {.sin_family = AF_INET, .sin_addr = {inet_addr(text)}};
    struct sockaddr any;

    memcpy(&any, &found, sizeof any);
    return any;
}

/* An interface that is up; its frames are read from and written to what is returned. */
static int make_interface(void)
{
    struct ifreq request = {.ifr_name = "tap0", .ifr_flags = IFF_TAP | IFF_NO_PI};
    struct rtentry route = {.rt_flags = RTF_UP | RTF_GATEWAY};
    int device = open("/dev/net/tun", O_RDWR), any = socket(AF_INET, SOCK_DGRAM, 0);

    if (device < 0 || ioctl(device, TUNSETIFF, &request) < 0)
        die("/dev/net/tun"); /* is the module tun in the image? eif build --module tun */
    request.ifr_addr = address(ADDRESS);
    if (ioctl(any, SIOCSIFADDR, &request) < 0)
        die(ADDRESS);
    request.ifr_netmask = address(MASK);
    if (ioctl(any, SIOCSIFNETMASK, &request) < 0)
        die(MASK);
    request.ifr_flags = IFF_UP | IFF_RUNNING;
    if (ioctl(any, SIOCSIFFLAGS, &request) < 0)
        die("tap0");
    route.rt_dst = route.rt_genmask = address("0.0.0.0");
    route.rt_gateway = address(GATEWAY);
    if (ioctl(any, SIOCADDRT, &route) < 0)
        die(GATEWAY);
    close(any);
    return device;
}

static int connect_to_parent(void)
{
    struct sockaddr_vm parent = {.svm_family = AF_VSOCK, .svm_cid = PARENT, .svm_port = PORT};
    int stream = socket(AF_VSOCK, SOCK_STREAM, 0);

    if (connect(stream, (struct sockaddr *)&parent, sizeof parent) < 0)
        die("no gvproxy at port 1024 of the parent");
    return stream;
}

static void use_dns(void)
{
    int file;

    mkdir("/etc", 0755);
    file = open("/etc/resolv.conf", O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (file < 0 || dprintf(file, "nameserver %s\n", GATEWAY) < 0)
        die("/etc/resolv.conf");
    close(file);
}

static void send_frames(int device, int stream)
{
    static uint8_t frame[4 + FRAME_MAX];
    ssize_t length;

    while ((length = read(device, frame + 4, FRAME_MAX)) > 0) {
        uint32_t head = htonl(length);

        memcpy(frame, &head, 4);
        length += 4;
        for (ssize_t done = 0, sent; done < length; done += sent)
            if ((sent = send(stream, frame + done, length - done, MSG_NOSIGNAL)) <= 0)
                return;
    }
}

static void receive_frames(int device, int stream)
{
    static uint8_t frame[FRAME_MAX];
    uint32_t length;

    while (recv(stream, &length, 4, MSG_WAITALL) == 4) {
        length = ntohl(length);
        if (length > FRAME_MAX || recv(stream, frame, length, MSG_WAITALL) != (ssize_t)length)
            return;
        if (write(device, frame, length) < 0 && errno != EINVAL)
            return;
    }
}

int main(int count, char **arguments)
{
    int device, stream;

    if (count < 2) {
        fprintf(stderr, "usage: tap PROGRAM [ARGUMENT]...\n");
        return 2;
    }
    stream = connect_to_parent();
    device = make_interface();
    use_dns();
    /* Forked twice, so that what moves the frames is no child of the program's, which might wait for it. */
    if (fork() == 0) {
        if (fork() == 0)
            send_frames(device, stream);
        else if (fork() == 0)
            receive_frames(device, stream);
        _exit(0);
    }
    wait(NULL);
    close(device);
    close(stream);
    execvp(arguments[1], arguments + 1);
    die(arguments[1]);
}
