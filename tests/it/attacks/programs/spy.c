/* spy STOP CANARY: looks at each new process of its PID namespace for a way to the host: a root or a working folder of the
 * host, a descriptor of a file that is in no mount of a container, more capabilities than the spy has, no system call filter
 * where the spy has one. CANARY is a file of the host by which its root is known; there it is read and written to.
 *
 * Runs until the file STOP is there, then prints how many processes it has seen and how many ways out. */
#include "process.h"
#include <dirent.h>

static const char *canary;
static struct stat own_root, its_root;
static unsigned long long own_capabilities;
static unsigned long own_filter;

/* Whether a process has a mount of the device: of a container, that is what it may have open. One that has ended has none,
 * and nothing open either. */
static int may_have(const char *pid, dev_t device)
{
    char path[64], line[8192];
    int lines = 0, found = 0;
    snprintf(path, sizeof path, "/proc/%s/mountinfo", pid);
    FILE *mounts = fopen(path, "r");
    while (mounts && !found && fgets(line, sizeof line, mounts)) {
        unsigned major, minor;
        lines++;
        found = sscanf(line, "%*d %*d %u:%u", &major, &minor) == 2 && device == makedev(major, minor);
    }
    if (mounts)
        fclose(mounts);
    return found || lines == 0;
}

static int is_same(const struct stat *one, const struct stat *other)
{
    return one->st_dev == other->st_dev && one->st_ino == other->st_ino;
}

/* Whether the way up from a folder ends at the root of a container: the spy's or the process' own. */
static int is_below_a_root(int folder)
{
    struct stat here, above;
    int at = dup(folder);
    if (at < 0 || fstat(at, &here))
        return 1;
    for (int depth = 0; depth < 64; depth++) {
        int up = openat(at, "..", O_PATH | O_DIRECTORY | O_CLOEXEC);
        if (up < 0)
            break;
        close(at);
        at = up;
        fstat(at, &above);
        if (is_same(&above, &here))
            break;
        here = above;
    }
    close(at);
    return is_same(&here, &own_root) || is_same(&here, &its_root);
}

/* Whether a root contains the canary: then it is the root of the host. Reads the canary and writes a file beside it. */
static int is_of_host(int root, int pid)
{
    char text[64] = "", written[512];
    int file = openat(root, canary + 1, O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return 0;
    ssize_t length = read(file, text, sizeof text - 1);
    text[length > 0 ? length : 0] = 0;
    close(file);
    snprintf(written, sizeof written, "%s-written", canary + 1);
    file = openat(root, written, O_CREAT | O_WRONLY | O_CLOEXEC, 0644);
    if (file >= 0)
        close(file);
    hit("process %d has the host's root; read \"%.40s\", %s", pid, text, file >= 0 ? "wrote" : "wrote nothing");
    return 1;
}

/* Reads the root of a process, unless that is the host's. Called again after its folder or a descriptor was opened: before
 * its exec a process may refuse to be looked into, and after its exec allow it. With a root that was read too early, the
 * folders of its container would look like the host's. */
static void learn_root(int pid)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/root", pid);
    int root = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (root < 0)
        return;
    if (is_of_host(root, pid))
        memset(&its_root, 0, sizeof its_root);
    else
        fstat(root, &its_root);
    close(root);
}

static void look_at_descriptors(int pid)
{
    char path[64], name[320], number[16];
    snprintf(path, sizeof path, "/proc/%d/fd", pid);
    snprintf(number, sizeof number, "%d", pid);
    DIR *folder = opendir(path);
    if (!folder)
        return;
    struct dirent *entry;
    while ((entry = readdir(folder))) {
        struct stat stat;
        if (entry->d_name[0] == '.' || fstatat(dirfd(folder), entry->d_name, &stat, 0))
            continue;
        if (S_ISFIFO(stat.st_mode) || S_ISSOCK(stat.st_mode) || !(stat.st_mode & S_IFMT))
            continue;
        ssize_t length = readlinkat(dirfd(folder), entry->d_name, name, sizeof name - 1);
        name[length > 0 ? length : 0] = 0;
        if (S_ISDIR(stat.st_mode)) {
            int fd = openat(dirfd(folder), entry->d_name, O_PATH | O_CLOEXEC);
            learn_root(pid);
            if (fd >= 0 && !is_below_a_root(fd))
                hit("process %d has folder %s open", pid, name);
            if (fd >= 0)
                close(fd);
        } else if (!may_have("self", stat.st_dev)) {
            learn_root(pid);
            if (its_root.st_ino == 0 || !may_have(number, stat.st_dev))
                hit("process %d has %s open (mode %o), which is in no mount of a container", pid, name, stat.st_mode);
        }
    }
    closedir(folder);
}

/* Whether there is such a process. */
static int look_at(int pid)
{
    char path[64], status[4096];
    snprintf(path, sizeof path, "/proc/%d/status", pid);
    read_text(path, status, sizeof status);
    if (!status[0] || strstr(status, "State:\tZ") || strstr(status, "State:\tX"))
        return status[0] != 0;
    unsigned long long more = status_mask(status, "CapPrm:\t") & ~own_capabilities;
    if (more)
        hit("process %d has capabilities %llx, which the container has not", pid, more);
    if (own_filter && strstr(status, "Seccomp:") && !status_mask(status, "Seccomp:\t"))
        hit("process %d has no filter of system calls", pid);

    /* Another container's root is none of the host's; a process that has that one is in no container yet. */
    memset(&its_root, 0, sizeof its_root);
    learn_root(pid);
    snprintf(path, sizeof path, "/proc/%d/cwd", pid);
    int cwd = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    learn_root(pid);
    if (cwd >= 0 && !is_below_a_root(cwd))
        hit("process %d is in a folder of the host", pid);
    if (cwd >= 0)
        close(cwd);
    look_at_descriptors(pid);
    return 1;
}

int main(int count, char **arguments)
{
    if (count < 3)
        return 2;
    char status[4096];
    canary = arguments[2];
    read_text("/proc/self/status", status, sizeof status);
    own_capabilities = status_mask(status, "CapPrm:\t");
    own_filter = status_mask(status, "Seccomp:\t");
    stat("/", &own_root);
    printf("ready\n");
    fflush(stdout);

    unsigned long seen = 0;
    int next = newest_pid() + 1, last_seen = next - 1;
    for (unsigned long round = 0;; round++) {
        for (int pid = next; pid < next + 4; pid++) {
            if (look_at(pid) && pid > last_seen) {
                seen++;
                last_seen = pid;
            }
        }
        if (round % 16 == 0) {
            int newest = newest_pid();
            /* The newest two may still be on their way. */
            if (newest - 1 > next)
                next = newest - 1;
            if (exists(arguments[1]))
                break;
        }
    }
    printf("seen %lu hits %lu\n", seen, hits);
    return 0;
}
