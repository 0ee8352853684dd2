/* Does with the Nitro Secure Module all that an enclave can, and says of each check whether it held.
 *
 * Usage: nsm_check [SOCKET]. Without an argument it asks /dev/nsm, through the kernel's driver; with one, a
 * module that `nsm serve` offers on a unix socket. For each check one line goes to standard output, "ok NAME"
 * or "FAIL NAME WHY"; then an attestation document in Base64, between two lines of dashes. The exit code is 0
 * if all checks held. The enclave must have been started without a role, without debug mode, and with an
 * image that is not signed.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { REQUEST_MAX = 0x1000, RESPONSE_MAX = 0x3000, PCRS = 32, PCR_BYTES = 48, FIELD_BYTES = 1024 };

struct nsm_message { uint64_t request, request_length, response, response_length; };
#define NSM_REQUEST _IOWR(0x0A, 0, struct nsm_message)

static int module_fd, over_socket, failures;
static uint8_t request[REQUEST_MAX], response[RESPONSE_MAX];
static size_t request_length, response_length;

static void check(int held, const char *name, const char *why, ...)
{
    if (held) {
        printf("ok %s\n", name);
        return;
    }
    failures++;
    printf("FAIL %s ", name);
    va_list arguments;
    va_start(arguments, why);
    vprintf(why, arguments);
    va_end(arguments);
    printf("\n");
}

/* Writing CBOR: an item's head is its major type and a number. */

static void put_head(int major, size_t number)
{
    uint8_t *out = request + request_length;
    if (number < 24) {
        out[0] = major << 5 | number;
        request_length += 1;
    } else if (number < 256) {
        out[0] = major << 5 | 24;
        out[1] = number;
        request_length += 2;
    } else {
        out[0] = major << 5 | 25;
        out[1] = number >> 8;
        out[2] = number;
        request_length += 3;
    }
}

static void put_bytes(int major, const void *data, size_t length)
{
    put_head(major, length);
    memcpy(request + request_length, data, length);
    request_length += length;
}

static void put_text(const char *text) { put_bytes(3, text, strlen(text)); }

/* Begin {name: {count parameters}}; the parameters follow. */
static void begin(const char *name, size_t count)
{
    request_length = 0;
    put_head(5, 1);
    put_text(name);
    put_head(5, count);
}

/* Reading CBOR: a cursor that stops at the first thing it does not expect. */

struct cursor { const uint8_t *at, *end; };

static int head(struct cursor *in, int major, size_t *number)
{
    if (in->at == in->end || *in->at >> 5 != major) return 0;
    size_t information = *in->at & 31, width = information < 24 ? 0 : (size_t)1 << (information - 24);
    if (information > 27 || (size_t)(in->end - in->at) < 1 + width) return 0;
    *number = width ? 0 : information;
    for (size_t i = 0; i < width; i++) *number = *number << 8 | in->at[1 + i];
    in->at += 1 + width;
    return 1;
}

static int string(struct cursor *in, int major, const uint8_t **data, size_t *length)
{
    if (!head(in, major, length) || *length > (size_t)(in->end - in->at)) return 0;
    *data = in->at;
    in->at += *length;
    return 1;
}

static int text(struct cursor *in, const char *expected)
{
    const uint8_t *data;
    size_t length;
    return string(in, 3, &data, &length) && length == strlen(expected) && !memcmp(data, expected, length);
}

/* The response must be {name: {count entries: ...}}; the cursor is left at the first entry. */
static int opened(struct cursor *in, const char *name, size_t count)
{
    size_t number;
    *in = (struct cursor){response, response + response_length};
    return head(in, 5, &number) && number == 1 && text(in, name) && head(in, 5, &number) && number == count;
}

static int is_error(const char *expected)
{
    struct cursor in = {response, response + response_length};
    size_t number;
    return head(&in, 5, &number) && number == 1 && text(&in, "Error") && text(&in, expected);
}

static int is_text(const char *expected)
{
    struct cursor in = {response, response + response_length};
    return text(&in, expected) && in.at == in.end;
}

/* Carrying a request to the module. */

static int transfer(ssize_t (*operation)(int, void *, size_t), void *data, size_t length)
{
    for (size_t done = 0; done < length;) {
        ssize_t part = operation(module_fd, (uint8_t *)data + done, length - done);
        if (part <= 0) return 0;
        done += part;
    }
    return 1;
}

static ssize_t write_some(int fd, void *data, size_t length) { return write(fd, data, length); }

static int ask(void)
{
    response_length = 0;
    if (!over_socket) {
        struct nsm_message message = {(uintptr_t)request, request_length, (uintptr_t)response, RESPONSE_MAX};
        if (ioctl(module_fd, NSM_REQUEST, &message) != 0) {
            printf("FAIL ioctl %s\n", strerror(errno));
            failures++;
            return 0;
        }
        response_length = message.response_length;
        return 1;
    }
    uint8_t size[4] = {0, 0, request_length >> 8, request_length};
    if (!transfer(write_some, size, 4) || !transfer(write_some, request, request_length)) return 0;
    if (!transfer(read, size, 4)) return 0;
    response_length = (size_t)size[2] << 8 | size[3];
    return response_length <= RESPONSE_MAX && transfer(read, response, response_length);
}

static int ask_text(const char *name)
{
    request_length = 0;
    put_text(name);
    return ask();
}

static int ask_number(const char *name, const char *parameter, size_t number)
{
    begin(name, 1);
    put_text(parameter);
    put_head(0, number);
    return ask();
}

static int ask_extend(size_t index, const char *data)
{
    begin("ExtendPCR", 2);
    put_text("index");
    put_head(0, index);
    put_text("data");
    put_bytes(2, data, strlen(data));
    return ask();
}

static int ask_attestation(const void *user_data, const void *nonce, const void *public_key)
{
    const char *names[] = {"user_data", "nonce", "public_key"};
    const void *values[] = {user_data, nonce, public_key};
    begin("Attestation", 3);
    for (int i = 0; i < 3; i++) {
        put_text(names[i]);
        if (values[i]) put_bytes(2, values[i], FIELD_BYTES);
        else request[request_length++] = 0xf6;
    }
    return ask();
}

/* What a reply says. */

static int pcr(size_t index, const uint8_t **value, int *locked)
{
    struct cursor in;
    size_t length;
    if (!ask_number("DescribePCR", "index", index) || !opened(&in, "DescribePCR", 2)) return 0;
    if (!text(&in, "data") || !string(&in, 2, value, &length) || length != PCR_BYTES) return 0;
    if (!text(&in, "lock") || in.end - in.at != 1) return 0;
    *locked = *in.at == 0xf5;
    return *in.at == 0xf4 || *in.at == 0xf5;
}

static int is_zero(const uint8_t *value)
{
    static const uint8_t zero[PCR_BYTES];
    return !memcmp(value, zero, PCR_BYTES);
}

static int extended(const uint8_t **value)
{
    struct cursor in;
    size_t length;
    return opened(&in, "ExtendPCR", 1) && text(&in, "data") && string(&in, 2, value, &length) &&
           length == PCR_BYTES && in.at == in.end;
}

static int document(const uint8_t **data, size_t *length)
{
    struct cursor in;
    return opened(&in, "Attestation", 1) && text(&in, "document") && string(&in, 2, data, length) && *length > 0;
}

/* The checks. */

static void check_description(size_t locked_count)
{
    struct cursor in;
    const uint8_t *module_id;
    size_t number, length, count;
    char name[40];
    snprintf(name, sizeof name, "describe-nsm-%zu-locked", locked_count);
    int held = ask_text("DescribeNSM") && opened(&in, "DescribeNSM", 7) && text(&in, "digest") &&
               text(&in, "SHA384") && text(&in, "max_pcrs") && head(&in, 0, &number) && number == PCRS &&
               text(&in, "module_id") && string(&in, 3, &module_id, &length) && length > 0 &&
               text(&in, "locked_pcrs") && head(&in, 4, &count) && count == locked_count;
    for (size_t i = 0; held && i < count; i++) held = head(&in, 0, &number) && number == i;
    held = held && text(&in, "version_major") && head(&in, 0, &number) && text(&in, "version_minor") &&
           head(&in, 0, &number) && text(&in, "version_patch") && head(&in, 0, &number) && in.at == in.end;
    check(held, name, "not the description of such a module");
}

static void check_initial_pcrs(void)
{
    for (size_t index = 0; index < PCRS; index++) {
        char name[40];
        const uint8_t *value;
        int locked, measured = index <= 2 || index == 4;
        snprintf(name, sizeof name, "initial-pcr-%zu", index);
        if (!pcr(index, &value, &locked)) check(0, name, "no description");
        else if (is_zero(value) == measured) check(0, name, measured ? "it is zero" : "it is not zero");
        else check(locked == (index < 16), name, locked ? "it is locked" : "it is not locked");
    }
    ask_number("DescribePCR", "index", PCRS);
    check(is_error("InvalidIndex"), "no-pcr-32", "not InvalidIndex");
}

static void check_locked_pcrs(void)
{
    int lock_refused = 1, extend_refused = 1;
    for (size_t index = 0; index < 16; index++) {
        ask_number("LockPCR", "index", index);
        lock_refused = lock_refused && is_error("ReadOnlyIndex");
        ask_extend(index, "data");
        extend_refused = extend_refused && is_error("ReadOnlyIndex");
    }
    check(lock_refused, "lock-of-locked-refused", "not ReadOnlyIndex");
    check(extend_refused, "extend-of-locked-refused", "not ReadOnlyIndex");
}

static void check_user_pcrs(void)
{
    int grows = 1, locks = 1, stays = 1;
    for (size_t index = 16; index < PCRS; index++) {
        uint8_t before[PCR_BYTES] = {0};
        const uint8_t *value;
        int locked = 0;
        for (int round = 0; round < 10; round++) {
            grows = grows && ask_extend(index, "data") && extended(&value) && memcmp(value, before, PCR_BYTES);
            if (grows) memcpy(before, value, PCR_BYTES);
        }
        grows = grows && pcr(index, &value, &locked) && !locked && !memcmp(value, before, PCR_BYTES);
        locks = locks && ask_number("LockPCR", "index", index) && is_text("LockPCR");
        ask_number("LockPCR", "index", index);
        locks = locks && is_error("ReadOnlyIndex");
        ask_extend(index, "data");
        stays = stays && is_error("ReadOnlyIndex") && pcr(index, &value, &locked) && locked &&
                !memcmp(value, before, PCR_BYTES);
    }
    check(grows, "extend-16-to-31", "a register did not take the data");
    check(locks, "lock-16-to-31-once", "a lock did not hold, or held twice");
    check(stays, "locked-registers-stay", "a locked register changed");
    ask_number("LockPCRs", "range", PCRS);
    check(is_text("LockPCRs"), "lock-range-32", "refused, though all are locked");
    ask_number("LockPCRs", "range", PCRS + 1);
    check(is_error("InvalidIndex"), "lock-range-33-refused", "not InvalidIndex");
}

static void check_random(void)
{
    uint8_t before[256] = {0};
    int differs = 1;
    for (int round = 0; round < 16; round++) {
        struct cursor in;
        const uint8_t *data;
        size_t length;
        differs = differs && ask_text("GetRandom") && opened(&in, "GetRandom", 1) && text(&in, "random") &&
                  string(&in, 2, &data, &length) && length > 0 && length <= sizeof before &&
                  memcmp(data, before, length);
        if (differs) memcpy(before, data, length);
    }
    check(differs, "random-differs", "empty, or the same twice");
}

static void check_attestation(void)
{
    static uint8_t field[FIELD_BYTES];
    const uint8_t *data;
    size_t length;
    memset(field, 'x', sizeof field);
    check(ask_attestation(field, NULL, NULL) && document(&data, &length), "attest-user-data", "no document");
    check(ask_attestation(NULL, field, NULL) && document(&data, &length), "attest-nonce", "no document");
    check(ask_attestation(NULL, NULL, field) && document(&data, &length), "attest-public-key", "no document");
    check(ask_attestation(field, field, field) && document(&data, &length), "attest-all", "no document");
}

static void check_nonsense(void)
{
    const char *names[] = {"Foo", "DescribePCR", ""};
    int refused = 1;
    for (int i = 0; i < 3; i++) {
        ask_text(names[i]);
        refused = refused && is_error("InvalidOperation");
    }
    check(refused, "nonsense-refused", "not InvalidOperation");
}

static void print_document(void)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    static uint8_t nonce[FIELD_BYTES];
    const uint8_t *data;
    size_t length;
    memset(nonce, 'n', sizeof nonce);
    if (!ask_attestation(NULL, nonce, NULL) || !document(&data, &length)) {
        check(0, "final-document", "no document");
        return;
    }
    printf("-----BEGIN DOCUMENT-----\n");
    for (size_t i = 0; i < length; i += 3) {
        uint32_t group = (uint32_t)data[i] << 16;
        if (i + 1 < length) group |= (uint32_t)data[i + 1] << 8;
        if (i + 2 < length) group |= data[i + 2];
        putchar(digits[group >> 18]);
        putchar(digits[group >> 12 & 63]);
        putchar(i + 1 < length ? digits[group >> 6 & 63] : '=');
        putchar(i + 2 < length ? digits[group & 63] : '=');
        if (i % 48 == 45) putchar('\n');
    }
    printf("\n-----END DOCUMENT-----\n");
}

static int connect_to(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path) return -1;
    strcpy(address.sun_path, path);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    return fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) != 0 ? -1 : fd;
}

int main(int count, char **arguments)
{
    over_socket = count > 1;
    module_fd = over_socket ? connect_to(arguments[1]) : open("/dev/nsm", O_RDWR | O_CLOEXEC);
    if (module_fd < 0) {
        printf("FAIL open %s\n", strerror(errno));
        return 1;
    }
    check_description(16);
    check_initial_pcrs();
    check_locked_pcrs();
    check_user_pcrs();
    check_description(PCRS);
    check_random();
    check_nonsense();
    check_attestation();
    print_document();
    check(failures == 0, "all", "%d checks failed", failures);
    return failures != 0;
}
