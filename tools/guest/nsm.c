/* Asks the Nitro Secure Module who it is, for the image's measurements and for random bytes, and prints them.
 *
 * The requests and answers are CBOR (aws-nitro-enclaves-nsm-api, src/api/mod.rs); an answer's value stands right
 * after its key, so that looking for the key is all the decoding there is to do. */
#include "linux.h"

/* /dev/nsm: one ioctl, _IOWR(0x0A, 0, struct message) (include/uapi/linux/nsm.h). */
static const unsigned long NSM_IOCTL = 0xC0200A00;

struct message {
    const void *request;
    uint64_t request_length;
    void *response;
    uint64_t response_length;
};

static uint8_t response[0x3000];

static void print(struct line *line)
{
    add(line, "\n");
    syscall(SYS_write, 1, line->text, line->length);
}

static int fail(const char *what)
{
    struct line line = {0};

    add(&line, "NSM: ");
    add(&line, what);
    print(&line);
    return 1;
}

/* The place after the key in the response, or null where the response lacks it. */
static const uint8_t *value_of(const char *key, size_t response_length)
{
    for (size_t at = 0; at + length_of(key) < response_length; at++)
        if (starts_with((const char *)response + at, key))
            return response + at + length_of(key);
    return NULL;
}

static const uint8_t *ask(int device, const char *request, size_t length, const char *key)
{
    struct message message = {request, length, response, sizeof response};

    if (syscall(SYS_ioctl, device, NSM_IOCTL, &message) < 0)
        return NULL;
    return value_of(key, message.response_length);
}

static void add_hex(struct line *line, const uint8_t *bytes, size_t length)
{
    for (size_t i = 0; i < length; i++) {
        char pair[3] = {"0123456789abcdef"[bytes[i] >> 4], "0123456789abcdef"[bytes[i] & 15], 0};

        add(line, pair);
    }
}

int main(void)
{
    long device = syscall(SYS_open, "/dev/nsm", O_RDWR);
    const uint8_t *value;
    struct line module = {0}, random = {0};
    size_t length;

    if (device < 0)
        return fail("there is no /dev/nsm: no device, or no driver for it");

    value = ask((int)device, "\x6b" "DescribeNSM", 12, "\x69module_id");
    if (!value)
        return fail("DescribeNSM was not answered as it should");
    add(&module, "NSM: module ");
    length = *value == 0x78 ? *++value : *value & 0x1f; /* a text of 24 bytes or more, or of less */
    while (length--) {
        char letter[2] = {(char)*++value, 0};

        add(&module, letter);
    }
    print(&module);

    for (char index = 0; index < 3; index++) {
        char request[] = "\xa1\x6b" "DescribePCR" "\xa1\x65" "index" "?";
        struct line line = {0};

        request[sizeof request - 2] = index;
        value = ask((int)device, request, sizeof request - 1, "\x64" "data\x58\x30");
        if (!value)
            return fail("DescribePCR was not answered as it should");
        add(&line, "NSM: PCR");
        add_number(&line, (unsigned long)index);
        add(&line, " ");
        add_hex(&line, value, 48);
        print(&line);
    }

    value = ask((int)device, "\x69" "GetRandom", 10, "\x66random\x59");
    if (!value)
        return fail("GetRandom was not answered as it should");
    add(&random, "NSM: ");
    add_number(&random, (unsigned long)value[0] << 8 | value[1]);
    add(&random, " random bytes, the first are ");
    add_hex(&random, value + 2, 8);
    print(&random);
    return 0;
}
