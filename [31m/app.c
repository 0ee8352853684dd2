/* The enclave's application: whoever connects to vsock port 5000 and sends a nonce of 32 bytes gets the security
 * module's answer, which has an attestation document with that nonce. Put your own service in its place. */
#include <fcntl.h>
#include <linux/vm_sockets.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

enum { PORT = 5000, NONCE_BYTES = 32 };

/* In CBOR: {"Attestation": {"user_data": null, "public_key": null, "nonce": 32 bytes, which follow}} */
static const char head[] = "\xa1\x6b" "Attestation"
    "\xa3\x69" "user_data" "\xf6\x6a" "public_key" "\xf6\x65" "nonce" "\x58\x20";

/* What Linux's driver takes (include/uapi/linux/nsm.h). */
static struct { const void *request; uint64_t length; void *reply; uint64_t room; } message;

static void serve(int client, int module)
{
    static uint8_t request[sizeof head - 1 + NONCE_BYTES], reply[0x3000];

    memcpy(request, head, sizeof head - 1);
    if (recv(client, request + sizeof head - 1, NONCE_BYTES, MSG_WAITALL) != NONCE_BYTES)
        return;
    message.request = request, message.length = sizeof request;
    message.reply = reply, message.room = sizeof reply;
    if (ioctl(module, _IOWR(0x0A, 0, message), &message) == 0)
        send(client, reply, message.room, MSG_NOSIGNAL);
}

int main(void)
{
    struct sockaddr_vm here = {.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY, .svm_port = PORT};
    int module = open("/dev/nsm", O_RDWR), listener = socket(AF_VSOCK, SOCK_STREAM, 0);

    if (module < 0 || bind(listener, (struct sockaddr *)&here, sizeof here) || listen(listener, 8)) {
        perror("app");
        return 1;
    }
    puts("ready");
    for (;;) {
        int client = accept(listener, NULL, NULL);

        serve(client, module);
        close(client);
    }
}
