/* The first process of an enclave.
 *
 * It does what AWS's init does, so that one image behaves alike here and there:
 *
 *   1. /dev, and the console as standard input, output and error;
 *   2. kernel modules: those that /modules.load lists, then /nsm.ko, where there are any;
 *   3. the heartbeat: one byte, 0xB7, to CID 3, port 9000, which must come back;
 *   4. the application's arguments (/cmd) and environment (/env), one a line;
 *   5. /rootfs, where there is one, becomes the root; /proc, /sys, /run, /tmp and the like are mounted in it;
 *   6. the application runs; whatever it leaves behind is reaped until it ends; then the machine restarts,
 *      which ends an enclave.
 *
 * Beyond that it obeys /workdir (a directory) and /user (uid:gid[:gid,gid...]), takes cgroup version 2, or none
 * at all, where version 1 is not there in full, and says on the console why it gives up and how the application ended.
 *
 * When the first process ends, the kernel panics: that is how a boot that fails shows itself to the hypervisor. */
#include "linux.h"
#include "errno.h"

#define LENGTH(array) (sizeof(array) / sizeof *(array))

enum {
    MS_NOSUID = 2, MS_NODEV = 4, MS_NOEXEC = 8, MS_BIND = 4096, MS_MOVE = 8192,
    MNT_DETACH = 2,
    MODULE_INIT_COMPRESSED_FILE = 4,
    SIG_SETMASK = 2, SIGCHLD = 17,
    PROT_READ = 1, PROT_WRITE = 2, MAP_PRIVATE = 2, MAP_ANONYMOUS = 32,
    AF_VSOCK = 40, SOCK_STREAM = 1, SOL_SOCKET = 1, SO_RCVTIMEO = 20,
    CLOCK_MONOTONIC = 1,
    TCSBRK = 0x5409, /* with a non-zero argument: wait until all output is sent */
};

static const unsigned RB_MAGIC1 = 0xfee1dead, RB_MAGIC2 = 672274793, RB_AUTOBOOT = 0x01234567;

struct timespec {
    long seconds, nanoseconds;
};

struct sockaddr_vm {
    uint16_t family, reserved;
    uint32_t port, cid;
    uint8_t flags, zero[3];
};

static const uint32_t PARENT_CID = 3, HEARTBEAT_PORT = 9000;
static const uint8_t HEARTBEAT = 0xB7;
static const long TRANSPORT_WAIT_S = 5; /* for a driver that is still looking for its device */
static const long REPLY_WAIT_S = 20;     /* the bound that AWS's sources name and do not use */

static const char DEFAULT_PATH[] = "/sbin:/usr/sbin:/bin:/usr/bin";

/* --- saying ------------------------------------------------------------------------------------------------- */

static bool console_open;

static void say(struct line *line)
{
    long log = console_open ? -1 : syscall(SYS_open, "/dev/kmsg", O_WRONLY | O_CLOEXEC);

    line->text[line->length++] = '\n';
    syscall(SYS_write, log < 0 ? 2 : log, line->text, line->length);
}

static struct line begin(const char *text)
{
    struct line line = {0};

    add(&line, "init: ");
    add(&line, text);
    return line;
}

/* "what path: ENOENT"; the path may be null, and the error 0 when it was no system call that failed. */
static void complain(const char *prefix, const char *what, const char *path, long result)
{
    struct line line = begin(prefix);

    add(&line, what);
    if (path) {
        add(&line, " ");
        add(&line, path);
    }
    if (result < 0) {
        add(&line, ": ");
        add(&line, error_name(-result));
    }
    say(&line);
}

__attribute__((noreturn)) static void give_up(const char *what, const char *path, long result)
{
    complain("gives up: ", what, path, result);
    if (console_open)
        syscall(SYS_ioctl, 2, TCSBRK, 1);
    syscall(SYS_exit_group, 1);
    __builtin_unreachable();
}

static long must(long result, const char *what, const char *path)
{
    if (result < 0)
        give_up(what, path, result);
    return result;
}

/* --- files -------------------------------------------------------------------------------------------------- */

static void *allocate(size_t length)
{
    long address = syscall(SYS_mmap, 0, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (address < 0 && address > -4096)
        give_up("no memory to read a file of the image", NULL, address);
    return (void *)address;
}

/* The file's text, ended by a NUL that does not count as its length, or null where there is no such file. */
static char *read_file(const char *path, size_t *text_length)
{
    long file = syscall(SYS_open, path, O_RDONLY | O_CLOEXEC);
    size_t capacity = 4096, length = 0;
    char *text;

    if (file == -ENOENT)
        return NULL;
    must(file, "cannot open", path);
    text = allocate(capacity);
    for (;;) {
        long count = must(syscall(SYS_read, file, text + length, capacity - length - 1), "cannot read", path);

        if (count == 0)
            break;
        length += (size_t)count;
        if (length == capacity - 1) { /* files in /proc do not know their size, so none is asked */
            char *larger = allocate(capacity * 2);

            memcpy(larger, text, length);
            text = larger;
            capacity *= 2;
        }
    }
    syscall(SYS_close, file);
    text[length] = 0;
    *text_length = length;
    return text;
}

/* Like read_file, for what is the application's business no more: the file is gone afterwards. */
static char *take_file(const char *path, size_t *length)
{
    char *text = read_file(path, length);

    if (text)
        syscall(SYS_unlink, path);
    return text;
}

/* Cuts the text where `end` stands, in place. The last one ends an entry, it does not begin one. */
static char **entries_of(char *text, size_t length, char end)
{
    size_t count = 1, entry = 0;
    char **entries;

    for (size_t at = 0; at < length; at++)
        count += text[at] == end;
    entries = allocate((count + 1) * sizeof *entries);
    for (size_t at = 0; at < length; at++) {
        entries[entry++] = text + at;
        while (at < length && text[at] != end)
            at++;
        text[at] = 0; /* behind the last one, there is room for a NUL */
    }
    return entries; /* fresh memory is zero, so the list is ended */
}

/* The lines of a file, or null where there is no such file. */
static char **lines_of(const char *path)
{
    size_t length;
    char *text = read_file(path, &length);

    return text ? entries_of(text, length, '\n') : NULL;
}

/* Like lines_of; the file is gone afterwards. */
static char **take_lines(const char *path)
{
    size_t length;
    char *text = take_file(path, &length);

    return text ? entries_of(text, length, '\n') : NULL;
}

/* --- mounting ----------------------------------------------------------------------------------------------- */

struct mount {
    const char *type, *target;
    unsigned long flags;
    const char *options;
    bool needed;
};

static const struct mount DEVICES = {"devtmpfs", "/dev", MS_NOSUID | MS_NOEXEC, "mode=0755", true};

/* What containers get, in AWS's order. Without the last ones many an application still works. */
static const struct mount MOUNTS[] = {
    {"proc", "/proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL, true},
    {"tmpfs", "/run", MS_NOSUID | MS_NODEV, "mode=0755", true},
    {"tmpfs", "/tmp", MS_NOSUID | MS_NODEV, "mode=1777", true},
    {"tmpfs", "/dev/shm", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=1777", false},
    {"devpts", "/dev/pts", MS_NOSUID | MS_NOEXEC, "mode=0620,gid=5,ptmxmode=0666", false},
    {"sysfs", "/sys", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL, false},
};

static const unsigned long CGROUP_FLAGS = MS_NOSUID | MS_NODEV | MS_NOEXEC;

static long mount(const struct mount *mount)
{
    long result;

    syscall(SYS_mkdir, mount->target, 0755); /* where this fails, mounting says why */
    result = syscall(SYS_mount, mount->type, mount->target, mount->type, mount->flags, mount->options);
    if (result == -EBUSY) /* the kernel did it */
        result = 0;
    if (result < 0 && mount->needed)
        give_up("cannot mount", mount->target, result);
    if (result < 0)
        complain("goes on: ", "cannot mount", mount->target, result);
    return result;
}

/* Mounts each enabled controller of version 1 in a directory of its own; says whether all of them allow it. */
static bool mount_cgroup_controllers(void)
{
    char **row = lines_of("/proc/cgroups"); /* name, hierarchy, number of groups, enabled; a heading in front */
    bool any = false;

    for (; row && *row; row++) {
        struct line directory = {0};
        char *name = *row, *end = name;

        while (*end && *end != '\t')
            end++;
        if (*name == '#' || !*end || !ends_with(end, "\t1"))
            continue;
        *end = 0;
        add(&directory, "/sys/fs/cgroup/");
        add(&directory, name);
        directory.text[directory.length] = 0;
        syscall(SYS_mkdir, directory.text, 0755);
        if (syscall(SYS_mount, "cgroup", directory.text, "cgroup", CGROUP_FLAGS, name) < 0)
            return false;
        any = true;
    }
    return any;
}

static void mount_cgroups(void)
{
    static const char path[] = "/sys/fs/cgroup";

    if (syscall(SYS_mount, "tmpfs", path, "tmpfs", CGROUP_FLAGS, "mode=0755") < 0)
        return; /* a kernel without cgroups has no such directory */
    if (mount_cgroup_controllers())
        return;
    syscall(SYS_umount2, path, MNT_DETACH);
    syscall(SYS_mount, "cgroup2", path, "cgroup2", CGROUP_FLAGS, NULL);
}

/* Linux cannot pivot_root away from an initramfs; moving a mount over the root does the same. */
static void enter_root_directory(void)
{
    static const char path[] = "/rootfs";
    long result = syscall(SYS_chdir, path);

    if (result == -ENOENT)
        return; /* an image of one ramdisk: the application lives beside us */
    must(result, "cannot enter", path);
    must(syscall(SYS_mount, path, path, NULL, MS_BIND, NULL), "cannot bind", path);
    must(syscall(SYS_chdir, path), "cannot enter", path);
    must(syscall(SYS_mount, ".", "/", NULL, MS_MOVE, NULL), "cannot move the mount to the root:", path);
    must(syscall(SYS_chroot, "."), "cannot change the root to", path);
    must(syscall(SYS_chdir, "/"), "cannot enter", "/");
}

static void mount_file_systems(void)
{
    mount(&DEVICES);
    for (size_t i = 0; i < LENGTH(MOUNTS); i++)
        mount(&MOUNTS[i]);
    syscall(SYS_symlink, "/proc/self/fd", "/dev/fd");
    syscall(SYS_symlink, "/proc/self/fd/0", "/dev/stdin");
    syscall(SYS_symlink, "/proc/self/fd/1", "/dev/stdout");
    syscall(SYS_symlink, "/proc/self/fd/2", "/dev/stderr");
    mount_cgroups();
}

/* --- the steps before the application ------------------------------------------------------------------------ */

static void open_console(void)
{
    static const char path[] = "/dev/console";
    long console = must(syscall(SYS_open, path, O_RDWR), "cannot open", path);

    for (int descriptor = 0; descriptor < 3; descriptor++)
        if (console != descriptor)
            must(syscall(SYS_dup2, console, descriptor), "cannot use", path);
    if (console > 2)
        syscall(SYS_close, console);
    console_open = true;
}

/* Says false where there is no such file. Loaded modules are deleted, which frees their memory. */
static bool load_module(const char *path)
{
    long result, file = syscall(SYS_open, path, O_RDONLY | O_CLOEXEC);

    if (file == -ENOENT)
        return false;
    must(file, "cannot open", path);
    result = syscall(SYS_finit_module, file, "", ends_with(path, ".ko") ? 0 : MODULE_INIT_COMPRESSED_FILE);
    if (result != -EEXIST) /* EEXIST: it is part of the kernel, or was listed twice */
        must(result, "the kernel refuses the module", path);
    syscall(SYS_close, file);
    syscall(SYS_unlink, path);
    return true;
}

static void load_modules(void)
{
    char **path = take_lines("/modules.load");

    if (path)
        for (; *path; path++)
            if (**path && **path != '#' && !load_module(*path))
                give_up("/modules.load names a module that is not there:", *path, -ENOENT);
    load_module("/nsm.ko");
}

static long now_s(void)
{
    struct timespec now = {0, 0};

    syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &now);
    return now.seconds;
}

/* Connects to the parent, waiting a while for a transport that is not there yet. */
static long connect_to_parent(void)
{
    const struct sockaddr_vm parent = {.family = AF_VSOCK, .port = HEARTBEAT_PORT, .cid = PARENT_CID};
    const struct timespec pause = {0, 10 * 1000 * 1000};
    const long deadline_s = now_s() + TRANSPORT_WAIT_S;

    for (;;) {
        long result = syscall(SYS_socket, AF_VSOCK, SOCK_STREAM, 0), stream = result;

        if (stream >= 0) {
            result = syscall(SYS_connect, stream, &parent, sizeof parent);
            if (result >= 0)
                return stream;
            syscall(SYS_close, stream);
        }
        switch (-result) {
        case EAFNOSUPPORT:
        case ENODEV:
        case EADDRNOTAVAIL:
        case ETIMEDOUT:
            if (now_s() < deadline_s)
                break;
            /* fall through */
        default:
            give_up(result == -EAFNOSUPPORT ? "heartbeat: this kernel has no vsock; is a module missing in"
                    : result == -ENODEV     ? "heartbeat: no vsock device; is a driver missing in"
                    : result == -ECONNRESET ? "heartbeat: nobody on the host listens on"
                                            : "heartbeat: cannot connect to",
                    result == -EAFNOSUPPORT || result == -ENODEV ? "/modules.load?" : "CID 3, port 9000", result);
        }
        syscall(SYS_nanosleep, &pause, NULL);
    }
}

static void send_heartbeat(void)
{
    const struct timespec wait = {REPLY_WAIT_S, 0};
    uint8_t reply = 0;
    long stream = connect_to_parent(), count;

    syscall(SYS_setsockopt, stream, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof wait);
    must(syscall(SYS_write, stream, &HEARTBEAT, 1), "heartbeat: cannot write to", "CID 3, port 9000");
    count = must(syscall(SYS_read, stream, &reply, 1), "heartbeat: no answer from", "CID 3, port 9000");
    if (count != 1)
        give_up("heartbeat: closed without an answer by", "CID 3, port 9000", 0);
    if (reply != HEARTBEAT)
        give_up("heartbeat: the answer is not 0xB7 from", "CID 3, port 9000", 0);
    syscall(SYS_close, stream);
}

/* --- the application ---------------------------------------------------------------------------------------- */

struct application {
    char **arguments, **environment;
    char *directory, *user; /* null where the image does not say */
};

static char *first_line(char **lines)
{
    return lines ? lines[0] : NULL;
}

/* What the application gets: entries that NULs end and so may have newlines, or else lines. */
static char **take_list(const char *with_nuls, const char *with_newlines)
{
    size_t length;
    char *text = take_file(with_nuls, &length);

    return text ? entries_of(text, length, 0) : take_lines(with_newlines);
}

static struct application read_application(void)
{
    static char *shell[] = {"sh", NULL}, *nothing[] = {NULL};
    struct application application = {shell, nothing, NULL, NULL};
    char **command = take_list("/cmd0", "/cmd"), **environment = take_list("/env0", "/env");

    if (command && *command) {
        application.arguments = command;
    } else {
        struct line line = begin("no command in /cmd: runs sh");

        say(&line);
    }
    if (environment) {
        char **kept = application.environment = environment;

        for (char **variable = kept; *variable; variable++)
            if (**variable) /* an empty line is no variable */
                *kept++ = *variable;
        *kept = NULL;
    }
    application.directory = first_line(take_lines("/workdir"));
    application.user = first_line(take_lines("/user"));
    return application;
}

static uint32_t read_number(const char **text)
{
    uint64_t number = 0;
    const char *start = *text;

    while (**text >= '0' && **text <= '9' && number <= UINT32_MAX)
        number = number * 10 + (uint64_t)(*(*text)++ - '0');
    if (*text == start || number >= UINT32_MAX) /* the largest one means "unchanged" to the kernel */
        give_up("/user is not uid:gid[:gid,gid...] in numbers at", *start ? start : "its end", 0);
    return (uint32_t)number;
}

static void become_user(const char *text)
{
    uint32_t uid, gid, groups[64];
    size_t count = 0;

    uid = read_number(&text);
    if (*text++ != ':')
        give_up("/user names no group", NULL, 0);
    gid = read_number(&text);
    while (*text) {
        if (*text != (count ? ',' : ':') || count == LENGTH(groups))
            give_up("/user is not uid:gid[:gid,gid...] with at most 64 groups at", text, 0);
        text++;
        groups[count++] = read_number(&text);
    }
    syscall(SYS_fchown, 0, uid, gid); /* so that /dev/stdout and its like can be opened */
    must(syscall(SYS_setgroups, count, groups), "cannot set the groups in", "/user");
    must(syscall(SYS_setgid, gid), "cannot set the group in", "/user");
    must(syscall(SYS_setuid, uid), "cannot set the user in", "/user");
}

/* Runs a program; a text without "#!" is the shell's, as everywhere. */
static long execute(const char *path, char **arguments, char **environment)
{
    long result = syscall(SYS_execve, path, arguments, environment);

    if (result == -ENOEXEC) {
        size_t count = 0;
        char **script;

        while (arguments[count])
            count++;
        script = allocate((count + 2) * sizeof *script);
        script[0] = "sh";
        script[1] = (char *)path;
        for (size_t i = 1; i < count; i++)
            script[i + 1] = arguments[i];
        result = syscall(SYS_execve, "/bin/sh", script, environment);
    }
    return result;
}

/* Returns only when nothing could be run: with why. */
static long search_and_execute(const struct application *application)
{
    const char *name = application->arguments[0], *search = DEFAULT_PATH;
    long result = -ENOENT;

    for (const char *c = name; *c; c++)
        if (*c == '/')
            return execute(name, application->arguments, application->environment);
    for (char **variable = application->environment; *variable; variable++)
        if (starts_with(*variable, "PATH="))
            search = *variable + 5;
    while (*search) {
        struct line path = {0};
        long attempt;

        while (*search && *search != ':') {
            char letter[2] = {*search++, 0};

            add(&path, letter);
        }
        if (*search)
            search++;
        add(&path, path.length ? "/" : "./");
        add(&path, name);
        path.text[path.length] = 0;
        attempt = execute(path.text, application->arguments, application->environment);
        if (attempt != -ENOENT)
            result = attempt; /* "may not be run" tells more than "is not in the last directory either" */
    }
    return result;
}

__attribute__((noreturn)) static void run_application(const struct application *application)
{
    const uint64_t no_signals = 0;

    syscall(SYS_setsid);
    if (application->directory)
        must(syscall(SYS_chdir, application->directory), "cannot enter the working directory",
             application->directory);
    if (application->user)
        become_user(application->user);
    syscall(SYS_rt_sigprocmask, SIG_SETMASK, &no_signals, NULL, sizeof no_signals);
    complain("", "cannot run", application->arguments[0], search_and_execute(application));
    syscall(SYS_exit_group, 127); /* a shell's status for it */
    __builtin_unreachable();
}

/* Waits for the application, and for every orphan that Linux hands to the first process meanwhile. */
static int wait_for(long application)
{
    int status;

    while (must(syscall(SYS_wait4, -1, &status, 0, NULL), "cannot wait for the application", NULL) != application)
        ;
    return status;
}

static void tell_end(int status)
{
    int signal = status & 0x7f;
    struct line line = begin(signal ? "the application was killed by signal " : "the application exited with ");

    add_number(&line, (unsigned)(signal ? signal : status >> 8 & 0xff));
    say(&line);
}

int main(void)
{
    const uint64_t all_signals = ~0ul;
    struct application application;
    long child;

    syscall(SYS_rt_sigprocmask, SIG_SETMASK, &all_signals, NULL, sizeof all_signals);
    mount(&DEVICES);
    open_console();
    load_modules();
    send_heartbeat();

    application = read_application();
    enter_root_directory();
    mount_file_systems();

    child = must(syscall(SYS_fork), "cannot start a process for the application", NULL);
    if (child == 0)
        run_application(&application);
    tell_end(wait_for(child));

    syscall(SYS_ioctl, 2, TCSBRK, 1); /* a restart would cut the last lines off */
    give_up("the kernel did not restart the machine", NULL, syscall(SYS_reboot, RB_MAGIC1, RB_MAGIC2, RB_AUTOBOOT, 0));
}
