/* Asks KMS, on the parent's vsock port 8000, to decrypt a secret for an attestation document.
 *
 * The RSA key is not made here, because that needs a library: /recipient.der is the public half of a key that the
 * test has, so that the test opens the envelope. /ciphertext is what to decrypt, in Base64. The answer of KMS goes to
 * standard output, between two lines of dashes.
 */
#include <fcntl.h>
#include <linux/vm_sockets.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

enum { KEY_MAX = 1024, TEXT_MAX = 4096, RESPONSE_MAX = 0x3000, PARENT = 3, PORT = 8000 };

struct nsm_message { uint64_t request, request_length, response, response_length; };
#define NSM_REQUEST _IOWR(0x0A, 0, struct nsm_message)

static uint8_t request[2048], response[RESPONSE_MAX];
static char body[32768], head[1024], answer[65536];

static size_t contents(const char *path, void *into, size_t most)
{
    int file = open(path, O_RDONLY);
    ssize_t length = file < 0 ? -1 : read(file, into, most);
    close(file);
    return length < 0 ? 0 : (size_t)length;
}

static char *base64(char *out, const uint8_t *data, size_t length)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (size_t i = 0; i < length; i += 3) {
        size_t left = length - i;
        uint32_t group = data[i] << 16 | (left > 1 ? data[i + 1] << 8 : 0) | (left > 2 ? data[i + 2] : 0);
        *out++ = digits[group >> 18];
        *out++ = digits[group >> 12 & 63];
        *out++ = left > 1 ? digits[group >> 6 & 63] : '=';
        *out++ = left > 2 ? digits[group & 63] : '=';
    }
    return out;
}

/* {"Attestation": {"public_key": bytes}} in CBOR; the document is at the end of the response, behind its length. */
static const uint8_t *attest(size_t *length)
{
    static const char begin[] = "\xa1\x6b" "Attestation" "\xa1\x6a" "public_key" "\x59";
    uint8_t *out = request;
    memcpy(out, begin, sizeof begin - 1);
    out += sizeof begin - 1;
    size_t key = contents("/recipient.der", out + 2, KEY_MAX);
    *out++ = key >> 8;
    *out++ = key;
    struct nsm_message message = {(uintptr_t)request, out + key - request, (uintptr_t)response, RESPONSE_MAX};
    int module = open("/dev/nsm", O_RDWR);
    if (key == 0 || ioctl(module, NSM_REQUEST, &message) != 0)
        return NULL;
    static const char before[] = "\xa1\x6b" "Attestation" "\xa1\x68" "document" "\x59";
    if (memcmp(response, before, sizeof before - 1) != 0)
        return NULL;
    const uint8_t *at = response + sizeof before - 1;
    *length = at[0] << 8 | at[1];
    return at + 2;
}

int main(void)
{
    size_t length = 0;
    const uint8_t *document = attest(&length);
    if (document == NULL) {
        puts("no document");
        return 1;
    }
    char *end = body + sprintf(body, "{\"CiphertextBlob\": \"");
    end += contents("/ciphertext", end, TEXT_MAX);
    end += sprintf(end, "\", \"Recipient\": {\"KeyEncryptionAlgorithm\": \"RSAES_OAEP_SHA_256\", "
                        "\"AttestationDocument\": \"");
    end = base64(end, document, length);
    end += sprintf(end, "\"}}");
    int size = sprintf(head,
                       "POST / HTTP/1.1\r\nHost: kms.us-east-1.amazonaws.com\r\nConnection: close\r\n"
                       "X-Amz-Target: TrentService.Decrypt\r\nContent-Type: application/x-amz-json-1.1\r\n"
                       "Authorization: AWS4-HMAC-SHA256 Credential=AKIAEXAMPLE/20261126/us-east-1/kms/aws4_request, "
                       "SignedHeaders=host, Signature=0\r\nContent-Length: %ld\r\n\r\n",
                       (long)(end - body));

    struct sockaddr_vm kms = {.svm_family = AF_VSOCK, .svm_cid = PARENT, .svm_port = PORT};
    int parent = socket(AF_VSOCK, SOCK_STREAM, 0);
    if (connect(parent, (struct sockaddr *)&kms, sizeof kms) != 0) {
        puts("no KMS");
        return 1;
    }
    for (const char *next = head; size > 0;) {
        ssize_t sent = write(parent, next, size);
        next += sent, size -= sent;
    }
    for (const char *next = body; next < end;)
        next += write(parent, next, end - next);
    ssize_t received, all = 0;
    while ((received = read(parent, answer + all, sizeof answer - 1 - all)) > 0)
        all += received;
    char *said = strstr(answer, "\r\n\r\n");
    printf("-----BEGIN ANSWER-----\n%s\n-----END ANSWER-----\n", said ? said + 4 : "");
    return 0;
}
